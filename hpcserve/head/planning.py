"""The planner's loop in the head: gathers what there is to see, carries out what is decided, and tells of it.

What is decided, and why, is `planner/`'s. With `planner.enabled` false nothing is carried out: it is a preview.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable

import msgspec

from hpcserve.comm.protocol import Command
from hpcserve.config.models import Config
from hpcserve.head.reconciler import Reconciler
from hpcserve.head.roster import Roster
from hpcserve.planner import Decision, Flip, Observation, Observer, Plan, PlanLine, Planner, PlanReport
from hpcserve.planner.decisions import kind_of
from hpcserve.router.router import Router
from hpcserve.state import StateDir
from hpcserve.types import Traffic, WorkerId, WorkerInfo

log = logging.getLogger(__name__)

_WAKE_POLL_S = 0.1  # without workers: somebody waits for one
_NUM_SHOWN = 20


class Planning:
    """Owns the planner of one deployment. `run` decides until cancelled."""

    def __init__(
        self,
        config: Config,
        state: StateDir,
        router: Router,
        roster: Roster,
        reconciler: Reconciler,
        *,
        traffic: Callable[[], Traffic],
        tell: Callable[[WorkerId, Command], None],
        on_change: Callable[[], None],
        can_resize: bool = True,
    ) -> None:
        """`traffic` returns all that frontends have counted; `on_change` is called after each decision."""
        self._config = config.planner
        self._path = state.path / "plan.jsonl"
        self._router = router
        self._roster = roster
        self._reconciler = reconciler
        self._traffic = traffic
        self._tell = tell
        self._on_change = on_change
        self._planner = Planner(config.planner, config.pools, can_resize=can_resize)
        self._observer = Observer(config.planner, router)
        self._seen: Observation | None = None
        self._plan: Plan | None = None
        self._lines: deque[PlanLine] = deque(maxlen=_NUM_SHOWN)
        self.counts: Counter[str] = Counter()  # decisions carried out, by kind
        self.wakes = config.planner.enabled and can_resize and config.planner.min_workers == 0
        router.let_wait(without_workers=self.wakes)

    @property
    def last(self) -> str:
        """The last decision that was carried out, with its reason."""
        return next((line.text for line in reversed(self._lines) if line.is_applied), "")

    def report(self) -> PlanReport:
        """Return what `hpcserve plan` shows."""
        return PlanReport(
            is_enabled=self._config.enabled, observation=self._seen, plan=self._plan, lines=tuple(self._lines)
        )

    async def run(self) -> None:
        """Decide every interval until cancelled, and at once if somebody waits for the first worker."""
        while True:
            await self._pause()
            try:
                self.step(time.time())
            except Exception:  # a fault here must not end the engines; the next round looks at the world anew
                log.exception("planning failed")

    def step(self, now: float) -> None:
        """Look once, decide, and act. `now` is Unix time."""
        sizes, held = self._reconciler.sizes, {record.worker for record in self._reconciler.held}
        heard = [
            info for info in self._roster.workers() if info.worker in held and not self._roster.is_lost(info.worker)
        ]
        self._seen = self._observer.observe(now, heard, sizes, self._traffic(), self._reconciler.wait_s)
        self._plan = self._planner.decide(self._seen)
        for decision in self._plan.decisions:
            self._take(decision, now)

    async def _pause(self) -> None:
        """Wait for an interval; without workers only until somebody waits."""
        deadline = time.monotonic() + self._config.interval_s
        while (left_s := deadline - time.monotonic()) > 0:
            if not self._is_asleep():
                await asyncio.sleep(left_s)
            elif self._router.num_waiting + self._router.num_backfilling:
                return
            else:
                await asyncio.sleep(min(left_s, _WAKE_POLL_S))

    def _is_asleep(self) -> bool:
        return self.wakes and not any(self._reconciler.sizes.values())

    def _take(self, decision: Decision, now: float) -> None:
        line = PlanLine(at=now, decision=decision, text=decision.text, is_applied=self._config.enabled)
        self._lines.append(line)
        if not self._config.enabled:
            log.debug("would: %s", line.text)
            return
        log.info("%s", line.text)
        self.counts[kind_of(decision)] += 1
        if isinstance(decision, Flip):
            self._tell(decision.worker, Command(op="role", role=decision.role))
        else:
            self._reconciler.resize(decision.sizes, decision.leaving)
        self._append(line)
        self._on_change()

    def _append(self, line: PlanLine) -> None:
        """Write a decision down. A full disk loses the line, not the decision."""
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(file, msgspec.json.encode(line) + b"\n")
            finally:
                os.close(file)
        except OSError as err:
            log.warning("%s cannot be written: %s", self._path, err)


def knows_engine(workers: tuple[WorkerInfo, ...]) -> bool:
    """Whether some worker, be it over, has told what it runs: then requests can be checked while none is there."""
    return any(info.engine is not None for info in workers)
