"""What a user needs once a deployment serves: endpoint, key, dashboard, a request that works, a way in from outside."""

from __future__ import annotations

import getpass
import json
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from hpcserve.state import StateDir
from hpcserve.types import Status

_LAPTOP_PORT = 8000  # where a Unix socket is brought to


def banner(status: Status, keys: StateDir | None, cert: Path | None = None) -> str:
    """Return the text; `keys` is None where no key is asked for, `cert` is one that clients do not know.

    No line is wrapped: they are meant for copying."""
    return "\n".join(f"{label:<10} {text}" if label else "" for label, text in _rows(status, keys, cert))


def curl(status: Status, keys: StateDir | None, cert: Path | None = None) -> str:
    """Return a command that works as printed, on the machine that runs the head."""
    body = {"model": status.model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32}
    # from a file: what stands on a command line, everybody on a login node can read
    key = f"-H @{shlex.quote(str(keys.header_file))} " if keys else ""
    json_type = "-H 'Content-Type: application/json'"
    trust = f"--cacert {shlex.quote(str(cert))} " if cert and status.endpoint else ""
    return f"curl {trust}{_target(status)}/chat/completions {key}{json_type} -d {shlex.quote(json.dumps(body))}"


def tunnel(status: Status) -> str:
    """Return the `ssh` line that brings endpoint and dashboard to a laptop."""
    urls = [url for url in (status.endpoint, status.dashboard) if url]
    forwards = [f"-L {_port(url)}:{urlsplit(url).hostname}:{_port(url)}" for url in urls]
    if not status.endpoint and status.unix_socket:
        forwards.insert(0, f"-L {_LAPTOP_PORT}:{shlex.quote(status.unix_socket)}")
    return f"ssh -N {' '.join(forwards)} {getpass.getuser()}@{status.head_host or socket.gethostname()}"


def _rows(status: Status, keys: StateDir | None, cert: Path | None) -> Iterator[tuple[str, str]]:
    pools = " + ".join(f"{num} {pool}" for pool, num in status.wanted.items())
    yield "", ""
    yield "serving", f"{status.model}: {status.mode}, {pools} on {status.cluster}, {status.policy} router"
    yield "endpoint", status.endpoint or "none"
    if status.endpoint:
        yield "page", status.endpoint.removesuffix("v1")
    if status.unix_socket:
        yield "socket", status.unix_socket
    yield "key", f"{keys.key_file} (hpcserve key --name {status.name})" if keys else "none needed"
    yield "dashboard", status.dashboard or "off"
    yield "try it", curl(status, keys, cert)
    yield "laptop", tunnel(status)
    yield "stop", f"hpcserve down --name {status.name}"
    yield "", ""


def _target(status: Status) -> str:
    if status.endpoint or not status.unix_socket:
        return str(status.endpoint)
    return f"--unix-socket {shlex.quote(status.unix_socket)} http://localhost/v1"


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
