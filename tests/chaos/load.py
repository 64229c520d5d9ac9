"""Clients that ask all the time, and what became of every request: exactly one right answer, or a complaint.

A client comes again only where the API told it to (a 503 with Retry-After, nothing streamed yet), or where its
connection ended because somebody had just killed a frontend (`excuses`). Everything else counts as lost.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.asking import Broken, Failed, Refused, Reply, Unreachable, ask, session_for
from tests.chaos.cases import Case, differences

_HANGS_AFTER_S = 150.0  # without an end of one attempt: longer than anything that is promised to be waited for
_MOST_S = 300.0  # from the first attempt to the answer
_LONGEST_WAIT_S = 5.0  # however long Retry-After says
_REPEAT_S = 0.3


@dataclass
class Outcome:
    """What became of one request."""

    case: str
    began: float  # monotonic
    took_s: float = 0.0
    num_refused: int = 0
    num_repeats: int = 0
    longest_pause_s: float = 0.0
    first_after_s: float | None = None
    num_tokens: int = 0
    complaint: str = ""


@dataclass
class Load:
    """Asks the deployment until told to stop; then what is under way is waited for."""

    endpoint: str
    key: str
    cases: Sequence[Case]
    seed: int
    num_clients: int
    is_excused: Callable[[float], bool]  # whether a connection may have ended at this (monotonic) time
    pause_s: float = 0.2  # of a client between two requests
    outcomes: list[Outcome] = field(default_factory=list)
    running: int = 0
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """No new requests."""
        self._stopping.set()

    async def run(self) -> None:
        """Return when `stop` was called and everybody has an answer."""
        async with session_for(self.endpoint, self.key) as session, asyncio.TaskGroup() as clients:
            for number in range(self.num_clients):
                clients.create_task(self._client(session, random.Random(f"{self.seed} client {number}")))

    async def once(self, cases: Sequence[Case]) -> list[Reply]:
        """Send each case once, some at a time, and return what came. Raises what `ask` does."""
        gate = asyncio.Semaphore(self.num_clients)

        async def one(session: aiohttp.ClientSession, case: Case) -> Reply:
            async with gate:
                return await ask(session, case)

        async with session_for(self.endpoint, self.key) as session:
            return await asyncio.gather(*(one(session, case) for case in cases))

    async def _client(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        while not self._stopping.is_set():
            case = rng.choice(self.cases)
            outcome = Outcome(case.name, time.monotonic())
            self.running += 1
            self.outcomes.append(outcome)
            await self._answered(session, case, outcome)
            outcome.took_s = time.monotonic() - outcome.began
            self.running -= 1
            await asyncio.sleep(rng.random() * 2 * self.pause_s)

    async def _answered(self, session: aiohttp.ClientSession, case: Case, outcome: Outcome) -> None:
        while True:
            attempt_at = time.monotonic()
            try:
                async with asyncio.timeout(_HANGS_AFTER_S):
                    reply = await ask(session, case)
                _judge(case, reply, outcome)
                return
            except Refused as err:
                outcome.num_refused += 1
                why, wait_s = f"was refused to the end: {err}", min(err.retry_after_s, _LONGEST_WAIT_S)
            except (Broken, Unreachable) as err:
                outcome.num_repeats += 1
                why, wait_s = (
                    f"{type(err).__name__.lower()} after {time.monotonic() - attempt_at:.1f} s: {err}",
                    _REPEAT_S,
                )
                if not self.is_excused(time.monotonic()):
                    outcome.complaint = f"the connection ended with no frontend killed: {why}"
                    return
            except Failed as err:
                outcome.complaint = f"failed: {err}"
                return
            except TimeoutError:
                outcome.complaint = f"no end within {_HANGS_AFTER_S:.0f} s"
                return
            if time.monotonic() - outcome.began > _MOST_S:
                outcome.complaint = f"no answer within {_MOST_S:.0f} s: {why}"
                return
            await asyncio.sleep(wait_s)


def _judge(case: Case, reply: Reply, outcome: Outcome) -> None:
    texts = [reply.texts[index] for index in sorted(reply.texts)]
    reasons = [reply.finish_reasons[index] for index in sorted(reply.texts)]
    outcome.complaint = differences(case, texts, reasons, reply.usage)
    outcome.longest_pause_s, outcome.first_after_s = reply.longest_pause_s, reply.first_after_s
    outcome.num_tokens = reply.usage.get("completion_tokens", 0)
