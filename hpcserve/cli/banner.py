"""What a user needs once a deployment serves: endpoint, key, dashboard, a request that works, a way in from outside."""

from __future__ import annotations

import getpass
import json
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from hpcserve.types import Status


def banner(status: Status, key_file: Path | None) -> str:
    """Return the text; `key_file` is None where no key is asked for. No line is wrapped: they are meant for copying."""
    return "\n".join(f"{label:<10} {text}" if label else "" for label, text in _rows(status, key_file))


def curl(status: Status, key_file: Path | None) -> str:
    """Return a command that works as printed, on the machine that runs the head."""
    body = {"model": status.model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 32}
    # the key is read when the command runs: it is neither shown nor kept in the shell's history
    key = f'-H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})" ' if key_file else ""
    json_type = "-H 'Content-Type: application/json'"
    return f"curl {status.endpoint}/chat/completions {key}{json_type} -d {shlex.quote(json.dumps(body))}"


def tunnel(status: Status) -> str:
    """Return the `ssh` line that brings endpoint and dashboard to a laptop."""
    urls = [url for url in (status.endpoint, status.dashboard) if url]
    forwards = " ".join(f"-L {_port(url)}:{urlsplit(url).hostname}:{_port(url)}" for url in urls)
    return f"ssh -N {forwards} {getpass.getuser()}@{status.head_host or socket.gethostname()}"


def _rows(status: Status, key_file: Path | None) -> Iterator[tuple[str, str]]:
    pools = " + ".join(f"{num} {pool}" for pool, num in status.wanted.items())
    yield "", ""
    yield "serving", f"{status.model}: {status.mode}, {pools} on {status.cluster}, {status.policy} router"
    yield "endpoint", status.endpoint or "none"
    yield "key", f"{key_file} (hpcserve key --name {status.name})" if key_file else "none needed"
    yield "dashboard", status.dashboard or "off"
    yield "try it", curl(status, key_file)
    yield "laptop", tunnel(status)
    yield "stop", f"hpcserve down --name {status.name}"
    yield "", ""


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)
