"""Bytes that nobody who means well would send. Never a 5xx, a traceback, or an ERROR in the log."""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import TypeVar

import pytest
import uvloop
from fake_backend import FakeBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcserve.config.models import Config, FrontendConfig
from hpcserve.frontend.app import make_app
from hpcserve.frontend.description.operations import OPERATIONS
from hpcserve.frontend.server.site import start_site

T = TypeVar("T")

BOUNDED = settings(
    max_examples=15,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
PATIENCE_S = 0.1  # for bytes that leave the server waiting for more
JSON = b"Content-Type: application/json\r\n"


class Target:
    """A server on a loop of its own, because hypothesis calls functions that block."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, backend: FakeBackend) -> None:
        self.loop, self.port, self.backend = loop, port, backend

    def run(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def first_answer(self, sent: bytes) -> tuple[bytes, bytes]:
        """Send, and return the head and the body of the first answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            body = await reader.readexactly(length)
        writer.close()
        return head, body

    async def answer(self, sent: bytes) -> bytes:
        """Send, and return what comes back until the server closes or there is no more for a while."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        received = b""
        try:
            writer.write(sent)
            while piece := await asyncio.wait_for(reader.read(65536), PATIENCE_S):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
        writer.close()
        return received

    async def answers(self, each_sent: list[bytes]) -> list[bytes]:
        return await asyncio.gather(*(self.answer(sent) for sent in each_sent))


@pytest.fixture(scope="module")
def target(tokenizer) -> Iterator[Target]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    backend = FakeBackend()

    async def start():
        config = Config(frontend=FrontendConfig(drain_timeout_s=0.1, max_body_mb=1))
        return await start_site(make_app(config, backend, None, tokenizer), "127.0.0.1", 0)

    try:
        site = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield Target(loop, site.port, backend)
        asyncio.run_coroutine_threadsafe(site.close(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(autouse=True)
def no_failure_is_logged(caplog) -> Iterator[None]:
    yield
    failures = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in failures] == []


def check(answer: bytes) -> None:
    assert b"Traceback" not in answer
    assert not answer or answer.startswith(b"HTTP/1.")
    for line in answer.split(b"\r\n"):
        if line.startswith(b"HTTP/1.") and line[8:9] == b" ":
            assert 100 <= int(line[9:12]) < 500, line


def post(path: str, *headers: bytes, body: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n%s" % (path.encode(), b"".join(headers), body)


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n" % len(body)


BOMB = gzip.compress(b" " * 50_000_000)
HOSTILE = {
    "no http": (b"\x00\x01garbage\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a long address": (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "a long header": (b"GET /live HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 10_000 + b"\r\n\r\n", 431),
    "an endless header": (b"GET /live HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 1_000_000, 431),
    "many headers": (b"GET /live HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 129 + b"\r\n", 431),
    "endless headers": (b"GET /live HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 100_000, 431),
    "no host": (b"GET /live HTTP/1.1\r\n\r\n", 400),
    "raw bytes in the address": (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "wrong escapes in the address": (b"GET /%ff%00%zz HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "a wrong length": (post("/v1/completions", b"Content-Length: -5\r\n"), 400),
    "two lengths": (post("/v1/completions", b"Content-Length: 5\r\nContent-Length: 6\r\n"), 400),
    "a length and chunks": (post("/v1/completions", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400),
    "a wrong chunk": (post("/v1/completions", JSON, b"Transfer-Encoding: chunked\r\n", body=b"zz\r\n"), 400),
    "no gzip": (post("/v1/messages", JSON, b"Content-Encoding: gzip\r\n", sized(b"abcde"), body=b"abcde"), 400),
    "a gzip bomb": (post("/v1/completions", JSON, b"Content-Encoding: gzip\r\n", sized(BOMB), body=BOMB), 413),
    "an unknown encoding": (post("/tokenize", JSON, b"Content-Encoding: x\r\n", sized(b"a"), body=b"a"), 400),
    "an upgrade": (post("/tokenize", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", sized(b"abc"), body=b"abc"), 400),
    "half a surrogate": (post("/tokenize", JSON, sized(b'{"prompt":"\\ud800"}'), body=b'{"prompt":"\\ud800"}'), 400),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_in_the_form_of_every_error(target, name):
    sent, status = HOSTILE[name]
    head, body = target.run(target.first_answer(sent))
    check(head + body)
    assert int(head[9:12]) == status, body
    assert b'"error":{' in body
    head, body = target.run(target.first_answer(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert (head[9:12], body) == (b"200", b'{"status":"ok"}')


PATHS = [each.path.replace("{id}", "mock").encode() for each in OPERATIONS]
METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"get", b"P\xd6ST", b""])
HEADERS = st.sampled_from(
    [
        b"Host: x",
        b"Content-Type: application/json",
        b"Content-Type: \xff",
        b"Content-Length: 10",
        b"Content-Length: 9999999999999999999",
        b"Content-Length: x",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Content-Encoding: deflate",
        b"Connection: close",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Expect: 100-continue",
        b"Authorization: Bearer \xff",
        b"X-Session-ID: \xfe",
        b"x-request-id: \xfd",
        b"Cookie: =;;;=",
        b"Range: bytes=-",
        b": nameless",
        b" folded",
    ]
)
JUNK = st.binary(max_size=40)
BODIES = st.one_of(
    JUNK,
    st.sampled_from([b"{}", b"[]", b"5\r\n{    \r\n0\r\n\r\n", b'{"model":"mock","prompt":"hi"}', b"\x1f\x8b\x08"]),
)


def request(method: bytes, path: bytes, query: bytes, version: bytes, headers: list[bytes], body: bytes) -> bytes:
    head = b" ".join((method, path + query, version)) + b"\r\n"
    return head + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def proper(path: bytes, method: bytes, headers: list[bytes], body: bytes) -> bytes:
    """Return a request of the right form, but for what `headers` make of it."""
    form = [b"Host: x", b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return request(method, path, b"", b"HTTP/1.1", form + headers, body)


REQUESTS = st.one_of(
    st.builds(
        request,
        METHODS,
        st.sampled_from([*PATHS, b"*", b"http://[::1", b"//", b"/v1/messages/%ff"]),
        st.one_of(st.just(b""), JUNK.map(lambda junk: b"?" + junk)),
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b""]),
        st.lists(HEADERS, max_size=6),
        BODIES,
    ),
    st.builds(proper, st.sampled_from(PATHS), METHODS, st.lists(HEADERS, max_size=2), BODIES),
)


def send_each(target: Target, strategy: st.SearchStrategy[bytes]) -> Counter[bytes]:
    """Send what the strategy makes, many at a time; check the answers and count the statuses."""
    statuses: Counter[bytes] = Counter()

    @BOUNDED
    @given(st.lists(strategy, min_size=20, max_size=40))
    def send(each_sent: list[bytes]) -> None:
        for answer in target.run(target.answers(each_sent)):
            check(answer)
            statuses[answer[9:12]] += 1

    send()
    return statuses


def test_random_bytes_are_never_a_failure_of_ours(target):
    statuses = send_each(target, st.binary(max_size=300))
    assert set(statuses) == {b"", b"400"}


def test_what_looks_like_http_is_never_a_failure_of_ours(target):
    statuses = send_each(target, st.lists(REQUESTS, min_size=1, max_size=3).map(b"".join))
    assert statuses[b"200"] > 0
    assert statuses[b"400"] > 50
    target.run(target.backend.until(lambda: target.backend.running == 0))
