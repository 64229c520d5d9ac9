"""Wanted workers and the jobs that hold them. Values and rules without a clock; what is done is `reconciler.py`'s."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpcserve.records import JobRecord
from hpcserve.types import WorkerId, WorkerInfo, WorkerState


@dataclass(eq=False)
class Held:
    """A job as long as it counts for its slot. Moments are of the head's own clock."""

    record: JobRecord
    adopted_at: float | None = None  # from an earlier head
    ready_since: float | None = None
    was_told: bool = False  # to leave, and by when

    @property
    def worker(self) -> WorkerId:
        """Whom it holds."""
        return self.record.worker


@dataclass(eq=False)
class Slot:
    """One wanted worker: the job that now holds it, and near that one's end the job that is to follow."""

    pool: str
    index: int
    job: Held | None = None
    successor: Held | None = None
    num_failures: int = 0  # in a row
    retry_at: float = 0.0
    last_failure: str = ""

    def jobs(self) -> Iterator[Held]:
        """Yield the present job and its successor, as far as there are any."""
        yield from (held for held in (self.job, self.successor) if held is not None)

    def release(self, held: Held) -> None:
        """Let go of a job; a successor takes the place of the present one."""
        if held is self.job:
            self.job = self.successor
        self.successor = None

    def fail(self, now: float, max_backoff_s: float, reason: str) -> None:
        """Count one more failure: the next launch waits for 2, 4, 8 … seconds."""
        self.num_failures += 1
        self.last_failure = reason
        self.retry_at = now + min(max_backoff_s, 2.0**self.num_failures)


def fresh_slots(pool: str, taken: Iterable[Slot], num: int) -> list[Slot]:
    """Return so many new slots of a pool, with the lowest numbers that nobody has."""
    numbers = {slot.index for slot in taken}
    free = (index for index in itertools.count() if index not in numbers)
    return [Slot(pool, index) for index in itertools.islice(free, max(0, num))]


def least_useful(
    slots: Iterable[Slot], num: int, find: Callable[[WorkerId], WorkerInfo | None], leaving: Sequence[WorkerId] = ()
) -> list[Slot]:
    """Return the slots that are given up first: without a job, then pending, not READY, in `leaving`, the youngest."""

    def use(slot: Slot) -> tuple[int, int, float, int]:
        if slot.job is None:
            return (0, 0, 0.0, -slot.index)
        info = find(slot.job.worker)
        state = WorkerState.PENDING if info is None else info.state
        rank = {WorkerState.PENDING: 1, WorkerState.READY: 3}.get(state, 2)
        turn = leaving.index(slot.job.worker) if slot.job.worker in leaving else len(leaving)
        return (rank, turn, -slot.job.record.submitted_at, -slot.index)

    return sorted(slots, key=use)[: max(0, num)]


def held_sizes(sizes: Mapping[str, int], records: Iterable[JobRecord]) -> dict[str, int]:
    """Return the sizes that an earlier head's planner left, by the jobs on record; `sizes` where there are none."""
    held = {(record.pool, record.index) for record in records}
    return {pool: sum(pool == each for each, _ in held) for pool in sizes} if held else dict(sizes)


def adopted_slots(pool: str, size: int, records: Iterable[JobRecord], now: float) -> tuple[list[Slot], list[JobRecord]]:
    """Return the slots of a pool with the jobs on record in them, and the records that have no place.

    Of a slot's two records the older one is the present job. A slot keeps its number, whatever others there are.
    """
    by_index: dict[int, list[JobRecord]] = {}
    for record in sorted(records, key=lambda each: each.submitted_at):
        by_index.setdefault(record.index, []).append(record)
    slots: list[Slot] = []
    left: list[JobRecord] = []
    for index, held in sorted(by_index.items()):
        if len(slots) == size:
            left += held
            continue
        jobs = [Held(record, now) for record in held]
        slots.append(Slot(pool, index, jobs[0], jobs[1] if len(jobs) > 1 else None))
        left += held[2:]
    return slots + fresh_slots(pool, slots, size - len(slots)), left
