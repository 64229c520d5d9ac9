"""Streaming chats in numbers, over plain HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class Chat:
    """One streamed reply, as it arrived."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    num_chunks: int = 0


@asynccontextmanager
async def session_for(endpoint: str, key: str) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        endpoint + "/", connector=connector, headers={"Authorization": f"Bearer {key}"}
    ) as session:
        yield session


async def stream_chat(
    session: aiohttp.ClientSession, content: str, *, max_tokens: int, model: str, chat: Chat | None = None
) -> Chat:
    chat = chat or Chat()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with session.post("chat/completions", json=body) as response:
        if response.status != 200:
            chat.error = await response.text()
            return chat
        async for line in response.content:
            if line.startswith(b"data: {"):
                _take(chat, json.loads(line[6:]))
    return chat


async def stream_chats(
    endpoint: str, key: str, contents: list[str], *, max_tokens: int, model: str = "mock"
) -> list[Chat]:
    async with session_for(endpoint, key) as session:
        chats = (stream_chat(session, content, max_tokens=max_tokens, model=model) for content in contents)
        return list(await asyncio.gather(*chats))


async def stream_chats_while(
    lose: Callable[[], object],
    endpoint: str,
    key: str,
    contents: list[str],
    *,
    max_tokens: int,
    model: str = "mock",
    after: int = 20,
) -> list[Chat]:
    """Stream chats, and call `lose` once each of them has shown more than `after` chunks."""
    chats = [Chat() for _ in contents]
    async with session_for(endpoint, key) as session:
        running = [
            asyncio.create_task(stream_chat(session, content, max_tokens=max_tokens, model=model, chat=chat))
            for content, chat in zip(contents, chats, strict=True)
        ]
        while not all(chat.num_chunks > after for chat in chats):
            await asyncio.sleep(0.01)
        lose()
        await asyncio.gather(*running)
    return chats


async def metric(session: aiohttp.ClientSession, name: str) -> float:
    """Return a metric of the frontend, added up over its labels."""
    async with session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


def _take(chat: Chat, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        chat.error = chunk["error"]["message"]
    for choice in chunk.get("choices", []):
        chat.text += choice["delta"].get("content") or ""
        chat.num_chunks += 1
        chat.finish_reason = choice["finish_reason"] or chat.finish_reason
    chat.usage = chunk.get("usage") or chat.usage
