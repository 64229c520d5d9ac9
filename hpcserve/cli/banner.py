"""What a user needs once a deployment serves: endpoint, key, dashboard, a request that works, a way in from outside."""

from __future__ import annotations

import getpass
import json
import shlex
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from hpcserve.state import StateDir
from hpcserve.types import Status


def banner(status: Status, keys: StateDir | None) -> str:
    """Return the text; `keys` is None where no key is asked for. No line is wrapped: they are meant for copying."""
    return "\n".join(f"{label:<10} {text}" if label else "" for label, text in _rows(status, keys))


def curl(status: Status, keys: StateDir | None) -> str:
    """Return a command that works as printed, on the machine that runs the head."""
    body = {"model": status.model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32}
    # from a file: what stands on a command line, everybody on a login node can read
    key = f"-H @{shlex.quote(str(keys.header_file))} " if keys else ""
    json_type = "-H 'Content-Type: application/json'"
    return f"curl {status.endpoint}/chat/completions {key}{json_type} -d {shlex.quote(json.dumps(body))}"


def tunnel(status: Status) -> str:
    """Return the `ssh` line that brings endpoint and dashboard to a laptop."""
    urls = [url for url in (status.endpoint, status.dashboard) if url]
    forwards = " ".join(f"-L {_port(url)}:{urlsplit(url).hostname}:{_port(url)}" for url in urls)
    return f"ssh -N {forwards} {getpass.getuser()}@{status.head_host or socket.gethostname()}"


def _rows(status: Status, keys: StateDir | None) -> Iterator[tuple[str, str]]:
    pools = " + ".join(f"{num} {pool}" for pool, num in status.wanted.items())
    yield "", ""
    yield "serving", f"{status.model}: {status.mode}, {pools} on {status.cluster}, {status.policy} router"
    yield "endpoint", status.endpoint or "none"
    yield "key", f"{keys.key_file} (hpcserve key --name {status.name})" if keys else "none needed"
    yield "dashboard", status.dashboard or "off"
    yield "try it", curl(status, keys)
    yield "laptop", tunnel(status)
    yield "stop", f"hpcserve down --name {status.name}"
    yield "", ""


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
