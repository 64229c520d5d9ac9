"""When cache events are sent. Time is the event loop's, which the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from hpcserve.agent.kv_log import KvLog
from hpcserve.agent.kv_outbox import KvOutbox
from hpcserve.types import BlockHash, BlocksCleared, BlocksRemoved, BlocksStored, KvEvent, KvEventBatch, WorkerId


@dataclass
class Sent:
    """An outbox, what left it, and its timer."""

    batches: list[KvEventBatch] = field(default_factory=list)
    timers: list[Callable[[], None]] = field(default_factory=list)
    is_idle: bool = False

    def __post_init__(self) -> None:
        self.log = KvLog(WorkerId("w"))
        self.outbox = KvOutbox(self.log, self.batches.append, lambda: self.is_idle)

    def put(self, *events: KvEvent) -> None:
        self.outbox.put(list(events))

    def tick(self) -> None:
        self.timers.pop(0)()

    @property
    def events(self) -> list[list[KvEvent]]:
        return [batch.events for batch in self.batches]


@pytest.fixture
async def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    made = Sent()
    handle = asyncio.get_running_loop().call_later(3600, lambda: None)
    handle.cancel()

    def call_later(delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        made.timers.append(callback)
        return handle

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    return made


def stored(*values: int) -> BlocksStored:
    return BlocksStored([BlockHash(value) for value in values])


async def test_the_first_events_are_told_at_once_and_later_ones_together(sent: Sent) -> None:
    sent.put(stored(1))
    assert sent.events == [[stored(1)]]
    sent.put(stored(2))
    sent.put(stored(3), BlocksRemoved([BlockHash(1)]))
    sent.put(BlocksCleared())
    assert len(sent.batches) == 1
    sent.tick()
    assert sent.events[1:] == [[stored(2, 3), BlocksRemoved([BlockHash(1)]), BlocksCleared()]]
    assert [batch.seq for batch in sent.batches] == [1, 2]


async def test_after_a_quiet_moment_events_are_told_at_once_again(sent: Sent) -> None:
    sent.put(stored(1))
    sent.tick()
    sent.put(stored(2))
    assert sent.events == [[stored(1)], [stored(2)]]


async def test_events_of_an_engine_that_runs_nothing_more_do_not_wait(sent: Sent) -> None:
    sent.put(stored(1))
    sent.is_idle = True
    sent.put(stored(2))
    assert sent.events == [[stored(1)], [stored(2)]]


async def test_a_snapshot_has_what_was_told_and_the_rest_follows_it(sent: Sent) -> None:
    sent.put(stored(1))
    sent.put(stored(2))
    assert sent.log.snapshot().events == [BlocksCleared(), stored(1)]
    sent.tick()
    assert sent.batches[-1].seq == sent.log.snapshot().seq == 2


async def test_a_closed_outbox_sends_nothing(sent: Sent) -> None:
    sent.put(stored(1))
    sent.put(stored(2))
    sent.outbox.close()
    sent.tick()
    assert len(sent.batches) == 1
