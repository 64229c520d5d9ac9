"""What is listened on, checked before anything is started, and how it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcserve.config.models import Config, FrontendConfig
from hpcserve.errors import ConfigError
from hpcserve.serve.listening import check_listening, endpoint_url, plain_http_warnings, reserve_port, resolved
from tests.certificates import make_certificate


@pytest.mark.parametrize(
    ("host", "has_tls", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:8000/v1"),
        ("127.0.0.1", True, "https://127.0.0.1:8000/v1"),
        ("::1", True, "https://[::1]:8000/v1"),
    ],
)
def test_the_endpoint_is_named_as_clients_need_it(host: str, has_tls: bool, url: str) -> None:
    assert endpoint_url(host, 8000, has_tls=has_tls) == url


@pytest.mark.parametrize(
    ("frontend", "is_warned"),
    [
        ({}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "login1"}, True),
        ({"host": "0.0.0.0", "tls_cert": "c", "tls_key": "k"}, False),
        ({"host": "0.0.0.0", "tcp": False, "unix_socket": "s"}, False),
    ],
)
def test_plain_http_on_a_network_is_warned_about(frontend: dict[str, object], is_warned: bool) -> None:
    assert bool(plain_http_warnings(Config.model_validate({"frontend": frontend}))) is is_warned


def test_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = resolved(FrontendConfig(unix_socket=Path("a.sock"), tls_cert=Path("~/c.pem")))
    assert (found.unix_socket, found.tls_cert, found.tls_key) == (tmp_path / "a.sock", Path("/home/me/c.pem"), None)


def test_what_cannot_be_listened_with_is_refused_before_a_start(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    good = FrontendConfig(port=0, tls_cert=cert, tls_key=key)
    check_listening(good)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        check_listening(good)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ConfigError, match="others may enter"):
        check_listening(FrontendConfig(port=0, unix_socket=tmp_path / "open" / "s"))


def test_any_free_port_is_kept_for_the_frontend_that_takes_the_place_of_a_dead_one() -> None:
    holder = reserve_port(FrontendConfig(port=0))
    assert holder is not None
    with holder:
        port = holder.getsockname()[1]
        with reserve_port(FrontendConfig(port=0), adopted=port) or pytest.fail("not held") as successor:
            assert successor.getsockname()[1] == port


@pytest.mark.parametrize("frontend", [FrontendConfig(port=8000), FrontendConfig(port=0, tcp=False)])
def test_a_single_frontend_with_a_port_of_its_own_needs_nobody_to_hold_it(frontend: FrontendConfig) -> None:
    assert reserve_port(frontend) is None
