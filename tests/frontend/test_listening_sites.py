"""Unix sockets and TLS, as sites of the frontend."""

from __future__ import annotations

import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from fake_backend import FakeBackend

from hpcserve.config.models import Config, FrontendConfig
from hpcserve.errors import ConfigError, DeploymentError
from hpcserve.frontend.app import make_app
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.frontend.server.certificate import is_self_signed, server_tls
from hpcserve.frontend.server.site import Site, start_site
from hpcserve.frontend.server.unix_socket import check_unix_socket
from tests.certificates import DAY, make_certificate

BODY = {"model": "mock", "prompt": "hi", "stream": True}


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path of this user's alone: sockets live under it."""
    path = Path(tempfile.mkdtemp(prefix="hs-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def start(tokenizer: Tokenizer) -> AsyncIterator[Callable[..., Awaitable[Site]]]:
    """Start sites, and close them at the end if the test did not come to it; closing twice is harmless."""
    async with AsyncExitStack() as stack:

        async def make(host: str | None, **options: object) -> Site:
            config = Config(frontend=FrontendConfig(drain_timeout_s=0.2))
            site = await start_site(make_app(config, FakeBackend(), None, tokenizer), host, 0, **options)
            stack.push_async_callback(site.close)
            return site

        yield make


async def stream(url: str, **connector: object) -> str:
    make = aiohttp.UnixConnector if "path" in connector else aiohttp.TCPConnector
    async with (
        aiohttp.ClientSession(connector=make(**connector)) as http,
        http.post(f"{url}/v1/completions", json=BODY) as response,
    ):
        assert response.status == 200
        return await response.text()


async def test_a_unix_socket_serves_beside_tcp_and_is_gone_with_the_site(start, home):
    path = home / "new" / "api.sock"
    site = await start("127.0.0.1", unix_socket=path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (await stream("http://localhost", path=str(path))).endswith("data: [DONE]\n\n")
    assert (await stream(f"http://127.0.0.1:{site.port}")).endswith("data: [DONE]\n\n")
    await site.close()
    assert not path.exists()


async def test_a_unix_socket_may_be_all_there_is(start, home):
    site = await start(None, unix_socket=home / "api.sock")
    assert (site.host, site.port) == (None, None)
    assert "[DONE]" in await stream("http://localhost", path=str(home / "api.sock"))
    await site.close()


async def test_a_socket_that_nobody_listens_on_is_replaced_and_one_in_use_is_left(start, home):
    path = home / "api.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    await start(None, unix_socket=path)
    with pytest.raises(DeploymentError, match="somebody listens on"):
        await start(None, unix_socket=path)
    assert "[DONE]" in await stream("http://localhost", path=str(path))


async def test_a_socket_that_is_anothers_by_now_is_not_removed(start, home):
    path = home / "api.sock"
    site = await start(None, unix_socket=path)
    path.rename(home / "old.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        await site.close()
        assert path.exists()


def test_a_socket_in_a_directory_that_others_may_enter_is_refused(home):
    home.chmod(0o755)
    with pytest.raises(ConfigError, match="others may enter"):
        check_unix_socket(home / "api.sock")


def test_a_file_that_is_no_socket_is_never_removed(home):
    (home / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="is no socket"):
        check_unix_socket(home / "notes")
    assert (home / "notes").read_text() == "mine"


def test_a_path_that_is_too_long_for_a_socket_is_refused(home):
    with pytest.raises(ConfigError, match="over the 107 bytes"):
        check_unix_socket(home / ("x" * 120))


async def test_tls_serves_streams_to_clients_that_know_the_certificate_only(start, home):
    cert, key = make_certificate(home)
    site = await start("127.0.0.1", tls=server_tls(cert, key))
    url = f"https://127.0.0.1:{site.port}"
    assert (await stream(url, ssl=ssl.create_default_context(cafile=cert))).endswith("data: [DONE]\n\n")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await stream(url)
    with pytest.raises(aiohttp.ClientError):
        await stream(url.replace("https", "http"))
    await site.close()


def test_a_certificate_that_is_its_own_authority_is_recognized(home):
    assert is_self_signed(make_certificate(home)[0])


@pytest.mark.parametrize(
    ("begins", "ends", "message"), [(-2 * DAY, -DAY, "expired on"), (DAY, 2 * DAY, "is not valid before")]
)
def test_a_certificate_that_is_not_valid_now_is_refused(home, begins, ends, message):
    with pytest.raises(ConfigError, match=message):
        server_tls(*make_certificate(home, begins=begins, ends=ends))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_may_read_is_refused(home, mode):
    cert, key = make_certificate(home)
    key.chmod(mode)
    with pytest.raises(ConfigError, match=r"others may read frontend\.tls_key"):
        server_tls(cert, key)


def test_a_key_of_another_certificate_is_refused(home):
    cert, _ = make_certificate(home / "a")
    _, key = make_certificate(home / "b")
    with pytest.raises(ConfigError, match="do not work together"):
        server_tls(cert, key)


@pytest.mark.parametrize("missing", ["cert.pem", "key.pem"])
def test_a_file_that_is_missing_is_named(home, missing):
    cert, key = make_certificate(home)
    (home / missing).unlink()
    with pytest.raises(ConfigError, match=f"{missing} cannot be read"):
        server_tls(cert, key)


def test_what_is_no_certificate_is_refused(home):
    cert, key = make_certificate(home)
    cert.write_text("hello")
    with pytest.raises(ConfigError, match="is no certificate in PEM"):
        server_tls(cert, key)
