"""An endpoint that does as the first word of a prompt says: `busy`, `crash`, `drop`, `poison`, `bad`, `slow`, ..."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

USAGE = {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}


@dataclass
class FakeEndpoint:
    """What was asked for, and what is answered."""

    url: str = ""
    model: str = "mock"
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    is_down: bool = False
    retry_after: str = "0"
    num_running: int = 0
    most_running: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.model, "max_model_len": 100}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        self.asked[prompt] += 1
        self.bodies.append(body)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            return await self._answer(request, prompt)
        finally:
            self.num_running -= 1

    async def _answer(self, request: web.Request, prompt: str) -> web.StreamResponse:
        word = prompt.partition(" ")[0]
        is_first = self.asked[prompt] == 1
        if self.is_down:
            return _refusal(503, "no_worker_ready", self.retry_after)
        if word == "busy" and self.asked[prompt] < 3:
            return _refusal(429, "rate_limit_exceeded", retry_after="0")
        if word == "poison" or (word == "crash" and is_first):
            return _refusal(500, "engine_error")
        if word == "drop" and is_first:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if word == "bad":
            return _refusal(400, "context_length_exceeded")
        if word == "gone":
            return _refusal(404, "model_not_found")
        if word == "slow":
            await self.released.wait()
        if word == "pretty":
            return web.Response(text=json.dumps({"text": "two\nlines", "usage": USAGE}, indent=2))
        await asyncio.sleep(0)
        return web.json_response({"text": prompt.upper(), "usage": USAGE}, headers={"x-request-id": f"id of {prompt}"})


@asynccontextmanager
async def fake_endpoint() -> AsyncIterator[FakeEndpoint]:
    fake = FakeEndpoint()
    app = web.Application()
    app.router.add_get("/v1/models", fake.models)
    app.router.add_post("/v1/chat/completions", fake.chat)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield fake
    finally:
        fake.released.set()
        await runner.cleanup()


def _refusal(status: int, code: str, retry_after: str | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    body = {"error": {"message": f"because of {code}", "code": code}}
    return web.json_response(body, status=status, headers=headers)
