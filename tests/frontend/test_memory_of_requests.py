"""A request that has ended is freed at once: it leaves no cycle that waits for the garbage collector."""

from __future__ import annotations

import asyncio
import gc

import pytest
from fake_backend import FakeBackend, fail_after, hang_after

from hpcserve.errors import EngineError

CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "mock", "prompt": "hi"},
    "/v1/responses": {"model": "mock", "input": "hi"},
    "/v1/messages": {**CHAT, "max_tokens": 4},
}
HELD = ("Generation", "Choice", "Request", "EngineRequest", "SseStream")


async def left_by(asking) -> list[str]:
    """Return the types of what of a few requests only the garbage collector finds."""
    await asking()  # what is made once
    gc.freeze()  # what was there before is not looked at: that would take longer than all the rest
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            await asking()
        gc.collect()
        return [type(each).__name__ for each in gc.garbage if type(each).__name__ in HELD]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", BODIES)
async def test_of_a_request_that_went_well_nothing_is_left(make_server, path: str, stream: bool) -> None:
    server = await make_server()

    async def ask() -> None:
        async with server.http.post(server.url + path, json={**BODIES[path], "stream": stream}) as response:
            assert response.status == 200, await response.text()
            await response.read()

    assert await left_by(ask) == []


async def test_of_a_client_that_hung_up_nothing_is_left(make_server) -> None:
    server = await make_server(FakeBackend(hang_after(["one"])))

    async def ask() -> None:
        url = server.url + "/v1/chat/completions"
        async with server.http.post(url, json={**CHAT, "stream": True}) as response:
            await response.content.readany()
            response.close()
        async with asyncio.timeout(5):
            while server.backend.running:
                await asyncio.sleep(0)

    assert await left_by(ask) == []


@pytest.mark.parametrize("stream", [True, False])
async def test_of_a_request_that_failed_nothing_is_left(make_server, stream: bool) -> None:
    server = await make_server(FakeBackend(fail_after(["one"], EngineError("boom"))))

    async def ask() -> None:
        url = server.url + "/v1/chat/completions"
        async with server.http.post(url, json={**CHAT, "stream": stream}) as response:
            await response.read()

    assert await left_by(ask) == []
