"""Every worker, as its agent and its job say: one table, one owner of the `Router`'s view of membership.

An agent knows its state, Slurm knows its job; neither knows both. What they say is merged here, and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

import msgspec

from hpcserve.comm.protocol import Announcement
from hpcserve.head.silence import Silence
from hpcserve.router.router import Router
from hpcserve.types import EndCause, KvEventBatch, LoadReport, WorkerId, WorkerInfo, WorkerState

log = logging.getLogger(__name__)

_FINAL = tuple(state for state in WorkerState if state.is_final)
_NUM_REMEMBERED = 16  # workers that are over and seen out, which status still shows


class Roster:
    """Workers by id. Methods are called on the head's event loop."""

    def __init__(
        self,
        router: Router,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        on_load: Callable[[], None] | None = None,
    ) -> None:
        """`on_load` is called instead of `on_change` where only a worker's load is another."""
        self._clock = clock
        self._router = router
        self._on_change = on_change
        self._on_load = on_load or on_change
        self._infos: dict[WorkerId, WorkerInfo] = {}
        self._addresses: dict[str, WorkerId] = {}  # Dask worker address -> worker
        self._lost_at: dict[WorkerId, float] = {}
        self._awaiting_snapshot: set[WorkerId] = set()
        self._loads: dict[WorkerId, LoadReport] = {}  # the last ones, also of those that are over
        self._explained: deque[WorkerId] = deque()  # the longest over first
        self._silence = Silence(clock)

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Return all workers in the order they were launched; of those that are over, the last few."""
        return tuple(self._infos.values())

    def loads(self) -> dict[WorkerId, LoadReport]:
        """Return the newest load report of each worker that sent one and is not over."""
        return {worker: load for worker, load in self._loads.items() if not self._is_over(worker)}

    def get(self, worker: WorkerId) -> WorkerInfo | None:
        """Return what is known of a worker."""
        return self._infos.get(worker)

    def last_load(self, worker: WorkerId) -> LoadReport | None:
        """Return the last load report of a worker, also of one that is over."""
        return self._loads.get(worker)

    def lost_for_s(self, worker: WorkerId) -> float:
        """Return for how many seconds the head has not heard a worker that it had heard; 0 while it hears it."""
        lost_at = self._lost_at.get(worker)
        return 0.0 if lost_at is None else self._clock() - lost_at

    def silent_for_s(self, worker: WorkerId) -> float:
        """Return for how many seconds a worker, READY and joined, has said nothing; 0 while it is not noticed."""
        info = self._infos.get(worker)
        return self._silence.silent_for_s(worker) if info is not None and info.is_silent else 0.0

    def is_lost(self, worker: WorkerId) -> bool:
        """Return whether the head had heard a worker and does not any more."""
        info = self._infos.get(worker)
        return worker in self._lost_at or (info is not None and info.is_silent)

    def is_ready(self, worker: WorkerId) -> bool:
        """Return whether a worker is READY and heard."""
        info = self._infos.get(worker)
        return info is not None and info.state is WorkerState.READY and not self.is_lost(worker)

    def find_silent(self) -> None:
        """Take READY workers that have fallen silent out of the routing, and have everybody told. Call it each second.

        Only they: a model that is being loaded may hold the agent's event loop for long.
        """
        ready = [info.worker for info in self.ready().values() if not info.is_silent]
        for worker in self._silence.look(ready):
            log.warning("%s has fallen silent; its requests are moved", worker)
            self._awaiting_snapshot.discard(worker)
            self._router.remove_worker(worker)
            self._infos[worker] = msgspec.structs.replace(self._infos[worker], is_silent=True)
            self._on_change()

    def dask_address(self, worker: WorkerId) -> str | None:
        """Return where the worker's Dask `Worker` is, while it is joined."""
        return next((address for address, known in self._addresses.items() if known == worker), None)

    def worker_at(self, dask_address: str) -> WorkerId | None:
        """Return whose Dask `Worker` is at an address."""
        return self._addresses.get(dask_address)

    def ready(self) -> dict[str, WorkerInfo]:
        """Return the READY workers that are joined, by the address of their Dask `Worker`."""
        known = {address: self._infos.get(worker) for address, worker in self._addresses.items()}
        return {address: info for address, info in known.items() if info and info.state is WorkerState.READY}

    def expect(self, info: WorkerInfo) -> None:
        """Take in a worker whose job was just submitted."""
        self._put(info)

    def hear(self, announcement: Announcement, dask_address: str) -> bool:
        """Apply what an agent says; True if its cache events have a gap, for which a snapshot was not yet asked."""
        worker = announcement.worker
        self._silence.hear(worker)
        has_returned = self._welcome(worker)
        if announcement.info is not None:
            self._addresses[dask_address] = worker
            self._lost_at.pop(worker, None)
            self._put(self._with_job(announcement.info))
        if announcement.load is not None and worker in self._infos:  # also with the last words, for the receipt
            self._loads[worker] = announcement.load
        if self._is_over(worker):
            return False
        if announcement.load is not None:
            self._router.report(worker, announcement.load)
            self._on_load()
        if announcement.kv is not None:
            return self._has_new_gap(announcement.kv) or has_returned
        return has_returned

    def is_given_up(self, announcement: Announcement) -> bool:
        """Return whether one that says it goes on was taken for dead: what it had was moved, and its slot is filled."""
        known, info = self._infos.get(announcement.worker), announcement.info
        goes_on = info is not None and info.state not in (WorkerState.DRAINING, *_FINAL)
        return goes_on and known is not None and known.state is WorkerState.FAILED

    def update_job(self, worker: WorkerId, **changes: object) -> None:
        """Apply what Slurm says: `job_id`, `host`, `ends_at`, `state`, `detail`."""
        info = self._infos.get(worker)
        if info is not None and any(getattr(info, name) != value for name, value in changes.items()):
            self._put(msgspec.structs.replace(info, **changes))

    def lose(self, dask_address: str) -> None:
        """Note that a Dask worker left. Its engine may well run on: its requests stay, new ones go elsewhere."""
        worker = self._addresses.pop(dask_address, None)
        info = self._infos.get(worker) if worker else None
        if worker and info and not info.state.is_final:
            log.warning("%s left the scheduler", worker)
            self._lost_at[worker] = self._clock()
            self._awaiting_snapshot.discard(worker)
            self._router.remove_worker(worker)
            self._on_change()

    def end(self, worker: WorkerId, state: WorkerState, detail: str) -> None:
        """Record that a worker is over."""
        info = self._infos.get(worker)
        if info is not None and not info.state.is_final:
            self._put(msgspec.structs.replace(info, state=state, detail=detail, is_silent=False))

    def explain(self, worker: WorkerId, cause: EndCause, detail: str) -> None:
        """Record why a worker that is over has ended; its own words, if it had any, stay. Soon it may be forgotten."""
        info = self._infos.get(worker)
        if info is not None and info.state.is_final:
            self._infos[worker] = msgspec.structs.replace(info, cause=cause, detail=info.detail or detail)
            self._explained.append(worker)
            if len(self._explained) > _NUM_REMEMBERED:
                forgotten = self._explained.popleft()
                self._infos.pop(forgotten, None)
                self._loads.pop(forgotten, None)
            self._on_change()

    def _welcome(self, worker: WorkerId) -> bool:
        """Take a worker that was silent back in. True if it was, and so has to say what its cache holds."""
        info = self._infos.get(worker)
        if info is None or not info.is_silent:
            return False
        log.warning("%s is heard again", worker)
        self._infos[worker] = info = msgspec.structs.replace(info, is_silent=False)
        if worker not in self._lost_at:
            self._router.update_worker(info)
        self._on_change()
        return True

    def _has_new_gap(self, batch: KvEventBatch) -> bool:
        if self._router.apply(batch):
            self._awaiting_snapshot.discard(batch.worker)
            return False
        is_new = batch.worker not in self._awaiting_snapshot
        self._awaiting_snapshot.add(batch.worker)
        return is_new

    def _put(self, info: WorkerInfo) -> None:
        if self._is_over(info.worker):
            return  # an end is final, whatever arrives late
        before = self._infos.get(info.worker)
        self._infos[info.worker] = info
        if info.state.is_final:
            self._router.remove_worker(info.worker)
            self._lost_at.pop(info.worker, None)
            self._awaiting_snapshot.discard(info.worker)
            self._silence.forget(info.worker)
        elif info.worker not in self._lost_at and not info.is_silent:
            self._router.update_worker(info)
        if before is None or before.state != info.state:
            log.info("%s is %s%s", info.worker, info.state, f": {info.detail}" if info.detail else "")
        self._on_change()

    def _with_job(self, info: WorkerInfo) -> WorkerInfo:
        known = self._infos.get(info.worker)
        if known is None:
            return info
        ends_at = info.ends_at if known.ends_at is None else known.ends_at  # the queue is read oftener
        return msgspec.structs.replace(info, job_id=known.job_id or info.job_id, ends_at=ends_at)

    def _is_over(self, worker: WorkerId) -> bool:
        info = self._infos.get(worker)
        return info is not None and info.state.is_final
