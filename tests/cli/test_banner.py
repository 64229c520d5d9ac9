"""The banner of endpoints with TLS and on Unix sockets."""

from __future__ import annotations

from pathlib import Path

from hpcserve.cli.banner import banner, curl, tunnel
from hpcserve.types import Phase, Status


def status(**fields: str | None) -> Status:
    facts = {"name": "t", "model": "m", "mode": "aggregated", "policy": "kv", "cluster": "local", "head_host": "login1"}
    return Status(phase=Phase.SERVING, **facts, **fields)


def test_a_certificate_that_clients_do_not_know_is_given_to_curl() -> None:
    over_tls = status(endpoint="https://127.0.0.1:8000/v1")
    assert curl(over_tls, None).startswith("curl https://127.0.0.1:8000/v1/chat/completions ")
    assert curl(over_tls, None, Path("/my c.pem")).startswith("curl --cacert '/my c.pem' https://127.0.0.1:8000/v1/")


def test_a_socket_beside_the_endpoint_is_shown_and_changes_nothing_else() -> None:
    both = status(endpoint="http://127.0.0.1:8000/v1", unix_socket="/run/me/api.sock")
    assert "socket     /run/me/api.sock\n" in banner(both, None)
    assert "--unix-socket" not in banner(both, None)
    assert "socket " not in banner(status(endpoint="http://127.0.0.1:8000/v1"), None)
    assert "page       http://127.0.0.1:8000/\n" in banner(both, None)


def test_a_socket_alone_is_asked_and_forwarded() -> None:
    only = status(unix_socket="/run/me/api.sock")
    target = "curl --unix-socket /run/me/api.sock http://localhost/v1/chat/completions "
    assert curl(only, None, Path("/c.pem")).startswith(target)
    assert "ssh -N -L 8000:/run/me/api.sock " in tunnel(only)
