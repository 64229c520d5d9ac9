"""Sends requests to one engine and notes when their tokens come. Decides nothing; `prefill` and `decode` do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hpcserve.bench.prompts import Prompts
from hpcserve.engine.protocol import AsyncEngine
from hpcserve.errors import EngineError
from hpcserve.types import EngineOutput, EngineRequest

_PATIENCE_S = 300.0  # for a token; a step takes seconds at the most


@dataclass(frozen=True)
class Clock:
    """The engine's time in seconds: a mock that runs `speedup` times as fast stands for an engine that does not."""

    speedup: float = 1.0
    read: Callable[[], float] = time.perf_counter

    def now(self) -> float:
        """Return seconds of the engine's since some moment."""
        return self.read() * self.speedup

    async def sleep(self, duration_s: float) -> None:
        """Wait for so long in the engine's time."""
        await asyncio.sleep(duration_s / self.speedup)


class Stream:
    """One request under way. `arrivals` has, for each output with tokens, when it came and how many there were then."""

    def __init__(self, request: EngineRequest, clock: Clock) -> None:
        self.num_prompt = len(request.token_ids)
        self.arrivals: list[tuple[float, int]] = []
        self.has_ended = False
        self._request = request
        self._clock = clock
        self._wanted = 0
        self._problem = ""
        self._reached = asyncio.Event()

    @property
    def num_generated(self) -> int:
        """Tokens that came so far."""
        return self.arrivals[-1][1] if self.arrivals else 0

    @property
    def context(self) -> int:
        """Prompt and output, in tokens."""
        return self.num_prompt + self.num_generated

    async def run(self, engine: AsyncEngine) -> None:
        """Read the request's outputs to their end. Raises `EngineError` if the engine dies."""
        async for output in engine.generate(self._request):
            self._take(output)
        self.has_ended = True
        self._reached.set()

    async def reached(self, num_tokens: int) -> None:
        """Return once so many tokens came, or the request has ended."""
        self._wanted = num_tokens
        self._reached.clear()
        if self.num_generated < num_tokens and not self.has_ended:
            await self._reached.wait()

    def check(self) -> None:
        """Raise `EngineError` if the request failed, or was not computed in full."""
        if self._problem:
            raise EngineError(f"a prompt of {self.num_prompt} random tokens: {self._problem}")

    def _take(self, output: EngineOutput) -> None:
        if output.error is not None:
            self._problem = output.error
        if output.cached_tokens:
            self._problem = f"the engine had {output.cached_tokens} of them in its cache"
        if output.token_ids:
            self.arrivals.append((self._clock.now(), self.num_generated + len(output.token_ids)))
            if self.num_generated >= self._wanted:
                self._reached.set()


@dataclass
class Probe:
    """An engine, prompts for it, and a clock."""

    engine: AsyncEngine
    prompts: Prompts
    clock: Clock
    _readers: dict[Stream, asyncio.Task[None]] = field(default_factory=dict)

    def start(self, num_prompt: int, max_tokens: int) -> Stream:
        """Send a request. Within `open`, which ends what is left of it."""
        stream = Stream(self.prompts.request(num_prompt, max_tokens), self.clock)
        self._readers[stream] = asyncio.create_task(stream.run(self.engine))
        return stream

    async def reached(self, stream: Stream, num_tokens: int) -> None:
        """Wait for tokens of a stream. Raises what any reader raised, and `EngineError` if none come."""
        if stream.num_generated >= num_tokens:
            return  # without giving way: an engine on the same loop would go on with everything else
        waiting = asyncio.create_task(stream.reached(num_tokens))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.wait((waiting, self._readers[stream]), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as err:
            raise EngineError(f"the engine gave no token within {_PATIENCE_S:g} s") from err
        finally:
            waiting.cancel()
        for other, reader in self._readers.items():
            if reader.done():
                reader.result()
                other.check()

    async def drop(self, streams: Iterable[Stream]) -> None:
        """Abort requests, or forget those that have ended."""
        readers = [self._readers.pop(stream) for stream in streams]
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Abort what still runs at the end, and wait for it."""
        try:
            yield
        finally:
            await self.drop(list(self._readers))

    async def first_token_s(self, num_tokens: int) -> float:
        """Return the time to the first token of a lone prompt."""
        async with self.open():
            began = self.clock.now()
            stream = self.start(num_tokens, max_tokens=1)
            await self.reached(stream, 1)
            return stream.arrivals[0][0] - began
