"""One attached run of `up`: bring a deployment up, hold it, and take it down. What it decides is in `describe.py`.

Whatever happens between start and SERVING (an error, the time limit, a signal), nothing is left running.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from hpcserve.cli.backend import Backend, changes
from hpcserve.cli.describe import is_complete, unfinished, why_hopeless
from hpcserve.cli.group import INTERRUPTED
from hpcserve.cli.interrupts import Interrupted, Interrupts
from hpcserve.cli.log_files import NUM_TAIL_LINES
from hpcserve.cli.streams import say
from hpcserve.cli.views import Screen, View
from hpcserve.config import Config
from hpcserve.errors import DeploymentError, HpcserveError, StartError
from hpcserve.observability.log_files import tail
from hpcserve.state import StateDir
from hpcserve.types import Phase, Status

_Result = TypeVar("_Result")

DEFAULT_TIMEOUT_S = 600.0
_LIVING = (Phase.STARTING, Phase.SERVING)
_MAX_SUCCESSORS = 5  # of heads that die, in one session
SETTLE_S = 20.0  # how long an endpoint that answers is held back for the workers that are still coming up


@dataclass(frozen=True, kw_only=True)
class Session:
    """How `up` was called, and what it talks to."""

    serve: Backend
    config: Config
    attached: bool
    timeout_s: float | None  # to SERVING; None: the default
    announce: Callable[[StateDir, Status], None]  # called once, when it serves
    given: Collection[str] | None = None  # keys that the user set for this; None: all that are no defaults
    wrong: Sequence[str] = ()  # why the configuration cannot be brought up anew
    interrupts: Interrupts = field(default_factory=Interrupts)
    on_status: Callable[[Status], None] = lambda _: None  # called with all that is seen

    async def run(self) -> int:
        """Return the exit code. Raises as `serve.start` does, `StartError`, and `DeploymentError` for a dead head."""
        with self.interrupts:
            # not interrupted: a signal during it is noted, and acts as soon as there is something to stop
            return await (await self._start()).run()

    async def during(self, work: Callable[[StateDir, Status], Coroutine[Any, Any, _Result]]) -> _Result:
        """Return what `work` returns, which is called once it serves; then, or however it ends, take all down.

        `work` may take the signals over. Raises `Interrupted` for one that comes while it does not run, and besides as
        `run`; `DeploymentError` when the head goes away meanwhile.
        """
        with self.interrupts:
            return await (await self._start()).around(work)

    async def restart(self, state: StateDir) -> _Started:
        """Start another head for what has run. Raises as `serve.start` does."""
        return await replace(self, given=frozenset(), config=state.read_config())._start()

    async def _start(self) -> _Started:
        left: list[str] = []
        start = partial(self.serve.start, given=self.given, wrong=self.wrong, on_adopting=left.append)
        state = await asyncio.to_thread(start, self.config)
        for description in left:
            say(f"the head of {state.name!r} had died, and {description} still there: a new head takes over")
        return _Started(self, state, Screen(state.logs), is_adopted=bool(left))


@dataclass(frozen=True)
class _Started:
    """The session from the moment on that there is something to stop."""

    session: Session
    state: StateDir
    screen: Screen
    is_adopted: bool = False  # it ran before this

    async def run(self) -> int:
        """Come up, then hold."""
        during = self.session.interrupts.during
        try:
            with self.screen.table() as view:
                status = await during(self._come_up(view))
            self.session.announce(self.state, status)
        except Interrupted:
            await self._take_down()
            return INTERRUPTED
        except Exception:
            if self.is_adopted:
                say(f"{self.state.name} is left as it is; hpcserve down --name {self.state.name} ends it")
            else:
                await self._take_down()
            raise
        return await self._hold() if self.session.attached else 0

    async def around(self, work: Callable[[StateDir, Status], Coroutine[Any, Any, _Result]]) -> _Result:
        """Come up, do the work, and go down."""
        try:
            with self.screen.table() as view:
                status = await self.session.interrupts.during(self._come_up(view))
            self.session.announce(self.state, status)
            return await self._while_it_runs(work(self.state, status))
        finally:
            with self.session.interrupts:  # what the work has taken over
                await self._take_down()

    async def _while_it_runs(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        working = asyncio.create_task(work)
        watching = asyncio.create_task(self._until_gone())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise DeploymentError(await self._last_words())
        finally:
            watching.cancel()
            working.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def _until_gone(self) -> None:
        with suppress(HpcserveError):
            async with changes(self.session.serve.watch(self.state)) as statuses:
                async for status in statuses:
                    self.session.on_status(status)

    async def _come_up(self, view: View) -> Status:
        status: Status | None = None
        settling = False
        timeout_s = DEFAULT_TIMEOUT_S if self.session.timeout_s is None else self.session.timeout_s
        try:
            async with asyncio.timeout(timeout_s) as limit, changes(self.session.serve.watch(self.state)) as statuses:
                async for status in statuses:
                    self.session.on_status(status)
                    view.update(status)
                    if status.phase is Phase.SERVING:
                        if is_complete(status):
                            return status
                        if not settling:
                            settling = True
                            limit.reschedule(_sooner(limit.when(), asyncio.get_running_loop().time() + SETTLE_S))
                        continue
                    if reason := why_hopeless(status):
                        raise StartError(reason)
                    if self.session.timeout_s is None and self.session.attached and status.cluster == "slurm":
                        limit.reschedule(None)  # queues are long, and somebody is watching
        except DeploymentError as err:
            self._print_end_of_log()
            raise StartError(err.message) from err
        except TimeoutError as err:
            if status is not None and status.phase is Phase.SERVING:
                return status
            so_far = unfinished(status) if status else "the head did not answer"
            raise StartError(f"not serving after {timeout_s:g} s: {so_far}") from err
        raise StartError(await self._last_words())

    async def _hold(self) -> int:
        """Show the deployment until a signal, or until it ends by itself. A head that dies gets a successor."""
        try:
            for _ in range(_MAX_SUCCESSORS):
                if await self._hold_once() not in _LIVING or not await self._bring_back():
                    break
        except Interrupted:
            return 0 if await self._take_down() else INTERRUPTED
        status = await self.session.serve.fetch_status(self.state)
        if status.phase is Phase.STOPPED:
            say(f"{self.state.name} was stopped from elsewhere")
            return 0
        reason = await self._last_words()
        await self._take_down(force=True)
        raise DeploymentError(reason)

    async def _hold_once(self) -> Phase | None:
        """Show one head's life, and return the last that it said of itself: one that dies says nothing of it."""
        phases: deque[Phase] = deque(maxlen=1)
        try:
            with self.screen.line() as view:
                await self.session.interrupts.during(self._show_changes(view, phases))
        except HpcserveError as err:
            say(f"lost the head: {err.message}")
        return phases[-1] if phases else None

    async def _bring_back(self) -> bool:
        """Start another head for what one has left that died."""
        try:
            started = await self.session.restart(self.state)
            with self.screen.table() as view:
                await self.session.interrupts.during(started._come_up(view))
        except HpcserveError as err:
            say(f"it did not come back: {err.message}")
            return False
        return True

    async def _show_changes(self, view: View, phases: deque[Phase]) -> None:
        async with changes(self.session.serve.watch(self.state)) as statuses:
            async for status in statuses:
                phases.append(status.phase)
                view.update(status)

    async def _take_down(self, *, force: bool = False) -> bool:
        """Stop everything and return whether that was done in good order; a signal meanwhile forces it."""
        for forced in (True,) if force else (False, True):
            say(f"{'forcing' if forced else 'stopping'} {self.state.name}" + ("" if forced else "; Ctrl-C forces it"))
            try:
                with self.screen.table() as view:
                    await self.session.interrupts.during(self._stop(view, force=forced))
            except Interrupted:
                continue
            except HpcserveError as err:  # what it was stopped for is more important: that is raised or returned
                if self._is_gone():
                    return not forced
                say(f"error while stopping: {err.message}")
                break
            return not forced
        say(f"jobs may be left: hpcserve down --force --name {self.state.name}")
        return False

    async def _stop(self, view: View, *, force: bool) -> None:
        async with changes(self.session.serve.stop(self.state, force=force)) as statuses:
            async for status in statuses:
                self.session.on_status(status)
                view.update(status)

    def _is_gone(self) -> bool:
        return self.state.read_head() is None and not self.state.read_jobs()

    async def _last_words(self) -> str:
        """Return why the head ended, and print the end of its log."""
        status = await self.session.serve.fetch_status(self.state)
        self._print_end_of_log()
        return f"the head of {self.state.name!r} ended: {status.detail or f'see {self.state.logs}/head.log'}"

    def _print_end_of_log(self) -> None:
        for line in tail(self.state.logs / "head.log", NUM_TAIL_LINES):
            say(f"    {line}")


def _sooner(bound: float | None, other: float) -> float:
    return other if bound is None else min(bound, other)
