"""Two ends of a channel over real TLS on loopback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from hpcserve.comm import wire
from hpcserve.comm.channel import Channel, Listener, connect
from hpcserve.comm.tls import Identity, create_identity
from hpcserve.errors import BadRequest, ConnectionLost, HpcserveError, Overloaded, RateLimited, Unavailable
from tests.chaos import sockets


class Recorder:
    def __init__(self, channel: Channel | None = None) -> None:
        self.channel = channel
        self.refusal = HpcserveError("no such thing")
        self.messages: list[tuple[str, object]] = []
        self.closed = asyncio.Event()
        self.enough = asyncio.Event()
        self.expected = 1

    def on_call(self, op: str, body: msgspec.Raw) -> Awaitable[object]:
        self.messages.append((op, msgspec.msgpack.decode(body)))
        if op == "refuse":
            raise self.refusal
        return self.answer(op, body)

    async def answer(self, op: str, body: msgspec.Raw) -> object:
        if op == "refuse later":
            raise self.refusal
        if op == "crash":
            raise RuntimeError("boom")
        if op == "hang":
            await asyncio.Event().wait()
        return msgspec.msgpack.decode(body)

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        self.messages.append((op, msgspec.msgpack.decode(body)))
        if len(self.messages) >= self.expected:
            self.enough.set()

    def on_close(self) -> None:
        self.closed.set()


@pytest.fixture
def identity(tmp_path: Path):
    return make_identity(tmp_path, "a")


def make_identity(directory: Path, name: str):
    cert, key = create_identity()
    cert_file, key_file = directory / f"{name}-cert.pem", directory / f"{name}-key.pem"
    cert_file.write_bytes(cert)
    key_file.write_bytes(key)
    return Identity(cert_file, key_file)


@asynccontextmanager
async def pair(identity) -> AsyncIterator[tuple[Channel, Recorder, Recorder]]:
    peers: list[Recorder] = []

    def make_peer(channel: Channel) -> Recorder:
        peers.append(Recorder(channel))
        return peers[-1]

    listener = Listener(make_peer, identity)
    address = await listener.start("127.0.0.1")
    channel = await connect(address, identity, timeout_s=5)
    client = Recorder()
    running = asyncio.create_task(channel.run(client))
    try:
        assert await channel.call("echo", 0, int, timeout_s=5) == 0
        yield channel, client, peers[0]
    finally:
        channel.close()
        await running
        await listener.close()


async def test_a_call_returns_what_the_other_side_answers(identity) -> None:
    async with pair(identity) as (channel, _, _):
        answers = await asyncio.gather(*(channel.call("echo", n, int, timeout_s=5) for n in range(100)))
        assert answers == list(range(100))


async def test_messages_arrive_in_order(identity) -> None:
    async with pair(identity) as (channel, _, server):
        server.messages.clear()
        server.expected = 1000
        for number in range(1000):
            channel.send("n", number)
        await asyncio.wait_for(server.enough.wait(), 5)
        assert server.messages == [("n", number) for number in range(1000)]


@pytest.mark.parametrize("size", [1, 100_000, 20_000_000])
async def test_bodies_of_any_size_arrive_whole_among_others(identity, size) -> None:
    async with pair(identity) as (channel, _, server):
        server.messages.clear()
        server.expected = 5
        sent = [b"", b"x" * size, b"y", b"z" * (size - 1), b"end"]
        for body in sent:
            channel.send("n", body)
        await asyncio.wait_for(server.enough.wait(), 20)
        assert [body for _, body in server.messages] == sent


async def test_a_body_that_cannot_be_sent_is_the_senders_mistake_alone(identity) -> None:
    async with pair(identity) as (channel, _, _):
        with pytest.raises(TypeError):
            channel.send("n", object())
        assert await channel.call("echo", 1, int, timeout_s=5) == 1


async def test_flushing_waits_until_all_is_on_its_way(identity) -> None:
    async with pair(identity) as (channel, _, server):
        server.messages.clear()
        channel.send("last", b"x" * 1_000_000)
        await channel.flush(5)
        channel.close()
        await asyncio.wait_for(server.closed.wait(), 5)
        assert len(server.messages) == 1


async def test_bytes_that_are_no_frame_end_the_connection_and_nothing_else(identity, caplog) -> None:
    async with pair(identity) as (channel, client, server):
        channel._wire._transport.write(b"\x03\x00\x00\x00abc")
        await asyncio.wait_for(server.closed.wait(), 5)
        await asyncio.wait_for(client.closed.wait(), 5)
    assert "failed" in caplog.text


async def test_calls_are_handed_over_in_order_with_messages(identity) -> None:
    async with pair(identity) as (channel, _, server):
        server.messages.clear()
        hung_up = asyncio.create_task(channel.call("hang", 1, int, timeout_s=5))
        await asyncio.sleep(0)
        channel.send("never mind", 1)
        await channel.call("echo", 2, int, timeout_s=5)
        assert server.messages == [("hang", 1), ("never mind", 1), ("echo", 2)]
        hung_up.cancel()


@pytest.mark.parametrize("op", ["refuse", "refuse later"])
@pytest.mark.parametrize("kind", [BadRequest, Unavailable, Overloaded, RateLimited])
async def test_an_error_of_ours_is_raised_at_the_caller_with_its_kind(identity, op, kind) -> None:
    async with pair(identity) as (channel, _, server):
        server.refusal = kind("no such thing", retry_after_s=7.5)
        with pytest.raises(HpcserveError, match="no such thing") as caught:
            await channel.call(op, None, int, timeout_s=5)
        assert type(caught.value) is kind
        assert caught.value.retry_after_s == 7.5


async def test_a_crash_is_not_leaked_to_the_caller(identity, caplog) -> None:
    async with pair(identity) as (channel, _, _):
        with pytest.raises(Exception, match="failed; see the log") as caught:
            await channel.call("crash", None, int, timeout_s=5)
        assert "boom" not in str(caught.value)


async def test_a_lost_connection_fails_the_calls_that_wait_and_tells_both_peers(identity) -> None:
    async with pair(identity) as (channel, client, server):
        waiting = asyncio.create_task(channel.call("hang", None, int, timeout_s=30))
        await channel.call("echo", 1, int, timeout_s=5)
        assert server.channel is not None
        server.channel.close()
        with pytest.raises(ConnectionLost):
            await waiting
        await asyncio.wait_for(client.closed.wait(), 5)
        await asyncio.wait_for(server.closed.wait(), 5)
        with pytest.raises(ConnectionLost):
            await channel.call("echo", 1, int, timeout_s=5)


async def test_a_connection_over_which_nothing_comes_any_more_is_over(identity, monkeypatch) -> None:
    monkeypatch.setattr(wire, "_SILENCE_S", 2)
    async with pair(identity) as (channel, client, _):
        await channel.call("echo", 1, int, timeout_s=5)
        for each in sockets.connections_between([os.getpid()], [os.getpid()]):
            sockets.swallow(each)
        with pytest.raises(ConnectionLost, match="was lost"):
            await channel.call("hang", None, int, timeout_s=30)
        await asyncio.wait_for(client.closed.wait(), 5)


async def test_a_call_without_an_answer_ends_at_its_bound(identity) -> None:
    async with pair(identity) as (channel, _, _):
        with pytest.raises(ConnectionLost, match="did not answer"):
            await channel.call("hang", None, int, timeout_s=0.05)


async def test_another_identity_is_refused(identity, tmp_path: Path) -> None:
    stranger = make_identity(tmp_path, "b")
    accepted: list[Recorder] = []

    def make_peer(channel: Channel) -> Recorder:
        accepted.append(Recorder(channel))
        return accepted[-1]

    listener = Listener(make_peer, identity)
    address = await listener.start("127.0.0.1")
    try:
        with pytest.raises(ConnectionLost):
            await connect(address, stranger, timeout_s=2)
        assert not accepted
    finally:
        await listener.close()


async def test_nothing_listens_is_said_with_the_address(identity) -> None:
    with pytest.raises(ConnectionLost, match=r"tls://127\.0\.0\.1:1"):
        await connect("tls://127.0.0.1:1", identity, timeout_s=1)
