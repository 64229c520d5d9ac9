"""Units of offline requests inside the Dask scheduler: each task gets the one worker that it should run on.

Dask queues, runs, retries and forgets the tasks; `unit_book.py` chooses. A task is bound to a worker before it is
scheduled, and again whenever Dask schedules it anew: one that was lost with its worker is never bound to a dead one. A
task that no READY worker can take is bound to nobody, and waits in Dask until one is READY.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from hpcserve.comm.protocol import UNIT, UnitDemand
from hpcserve.head.roster import Roster
from hpcserve.head.unit_book import UnitBook
from hpcserve.router.router import Router
from hpcserve.types import WorkerId, WorkerInfo

log = logging.getLogger(__name__)

_NOBODY = "tls://nobody:0"  # no restriction at all would mean: anybody, ready or not
_ENDS = ("memory", "erred", "released", "forgotten")


class UnitPlacer:
    """Binds tasks to workers. All methods are called on the head's event loop, by the plugin."""

    def __init__(self, router: Router, roster: Roster, block_size: int) -> None:
        self._router = router
        self._roster = roster
        self._book = UnitBook(block_size)

    @property
    def book(self) -> UnitBook:
        """What is placed where."""
        return self._book

    def on_transition(self, scheduler: Any, key: str, finish: str) -> None:
        """Follow a task: bind it before Dask looks for a worker, and unbook it when it has ended."""
        if finish == "waiting":
            task = scheduler.tasks[key]
            demand = _demand_of(task)
            if demand is not None:
                self._bind(scheduler, key, demand)
        elif finish in _ENDS:
            self._book.release(key)

    def wake(self, scheduler: Any) -> None:
        """A worker is READY: bind the tasks that wait for one."""
        bound = [
            task.key
            for task in list(scheduler.unrunnable)
            if (demand := _demand_of(task)) is not None and self._bind(scheduler, task.key, demand)
        ]
        if bound:
            stimulus_id = f"{UNIT}-ready-{time.time()}"
            scheduler.transitions(dict.fromkeys(bound, "processing"), stimulus_id=stimulus_id)

    def lose(self, scheduler: Any, worker: WorkerId) -> None:
        """A worker is gone: bind elsewhere what Dask has not handed out yet. The rest it schedules anew itself."""
        for key in self._book.keys_on(worker):
            task = scheduler.tasks.get(key)
            demand = None if task is None else _demand_of(task)
            if demand is None:
                self._book.release(key)
            elif task.state == "waiting":
                self._bind(scheduler, key, demand)

    def _bind(self, scheduler: Any, key: str, demand: UnitDemand) -> bool:
        candidates = self._candidates(demand)
        overlaps = self._router.overlaps(demand.block_hashes)
        worker = self._book.place(key, demand, tuple(candidates), overlaps)
        address = _NOBODY if worker is None else candidates[worker]
        scheduler.set_restrictions({key: {address}})
        log.debug("%s goes to %s", key, worker or "nobody yet")
        return worker is not None

    def _candidates(self, demand: UnitDemand) -> dict[WorkerId, str]:
        """Return the READY workers for a stage, and their Dask addresses. If need be decode workers compute prompts."""
        ready = self._roster.ready()
        able = [info for info in ready.values() if _fits(info, demand)]
        if not able and demand.stage == "prefill":
            able = list(ready.values())
        num_output = 0 if demand.stage == "prefill" else demand.num_output_tokens // max(1, demand.num_requests)
        lasting = {info.worker for info in self._router.lasting.among(able, demand.num_tokens, num_output, time.time())}
        return {info.worker: address for address, info in ready.items() if info.worker in lasting}


def _fits(info: WorkerInfo, demand: UnitDemand) -> bool:
    return info.role.prefills if demand.stage == "prefill" else info.role.decodes


def _demand_of(task: Any) -> UnitDemand | None:
    """Return what a task's driver says of it; None where it is no unit."""
    told = (task.annotations or {}).get(UNIT)
    if told is None:
        return None
    try:
        return msgspec.convert(told, UnitDemand)
    except msgspec.ValidationError as err:
        log.warning("%s: its annotation is not understood: %s", task.key, err)
        return None
