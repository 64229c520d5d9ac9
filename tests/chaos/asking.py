"""One request over HTTP, and its whole answer. What can go wrong is one of four exceptions; nothing is tried again."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.cases import Case


class Refused(Exception):
    """A 503 that says when to come again, before anything else was sent."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Failed(Exception):
    """An answer, but not the one that was asked for: another status, or an error within the stream."""


class Unreachable(Exception):
    """Nobody took the connection."""


class Broken(Exception):
    """The connection ended before the answer did."""


@dataclass
class Reply:
    """What came."""

    texts: dict[int, str] = field(default_factory=dict)  # by choice
    finish_reasons: dict[int, str | None] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    first_after_s: float | None = None
    longest_pause_s: float = 0.0

    def take(self, chunk: dict[str, Any]) -> None:
        """Take a chunk of a stream, or a whole reply."""
        for choice in chunk.get("choices", []):
            index = choice["index"]
            part = choice.get("delta") or choice.get("message") or choice
            self.texts[index] = self.texts.get(index, "") + (part.get("content") or part.get("text") or "")
            self.finish_reasons[index] = choice["finish_reason"] or self.finish_reasons.get(index)
        self.usage = chunk.get("usage") or self.usage


def session_for(endpoint: str, key: str) -> aiohttp.ClientSession:
    """A session that opens a connection for every request: what a dead frontend took with it is known then."""
    return aiohttp.ClientSession(
        f"{endpoint}/",
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        headers={"Authorization": f"Bearer {key}"},
        timeout=aiohttp.ClientTimeout(total=None),
    )


async def ask(session: aiohttp.ClientSession, case: Case) -> Reply:
    """Send one request and read its answer to the end. Raises one of the above."""
    try:
        async with session.post(case.path, json=case.body) as response:
            if response.status != 200:
                raise _refusal(response, (await response.read()).decode(errors="replace"))
            if case.is_streamed:
                return await _read_stream(response)
            reply = Reply()
            reply.take(await response.json())
            return reply
    except aiohttp.ClientConnectorError as err:
        raise Unreachable(str(err)) from err
    except (aiohttp.ClientError, OSError) as err:
        raise Broken(repr(err)) from err


async def _read_stream(response: aiohttp.ClientResponse) -> Reply:
    reply, began, last_at = Reply(), time.monotonic(), None
    is_done = False
    async for line in response.content:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise Failed(f"within the stream: {chunk['error']['message']}")
            reply.take(chunk)
            now = time.monotonic()
            if last_at is None:
                reply.first_after_s = now - began
            else:
                reply.longest_pause_s = max(reply.longest_pause_s, now - last_at)
            last_at = now
        is_done = is_done or line.startswith(b"data: [DONE]")
    if not is_done:
        raise Failed(f"a stream ended without [DONE], after {sum(map(len, reply.texts.values()))} characters")
    return reply


def _refusal(response: aiohttp.ClientResponse, text: str) -> Exception:
    retry_after = response.headers.get("Retry-After")
    message = f"{response.status}: {text[:300]}"
    if response.status == 503 and retry_after is not None:
        return Refused(message, float(retry_after))
    return Failed(message)
