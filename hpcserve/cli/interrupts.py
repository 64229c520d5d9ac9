"""Ctrl-C, SIGTERM and SIGHUP as something that a coroutine can be interrupted by, once for each time they come."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Collection, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

_Result = TypeVar("_Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal came while the work ran; the work was cancelled."""


class Interrupts:
    """Takes the signals over from Python while it is entered. Entered and used on the running loop."""

    def __init__(self, others: Collection[signal.Signals] = ()) -> None:
        """`others` interrupt, too."""
        self._signals = (*_SIGNALS, *others)
        self._arrived = asyncio.Event()
        self.last: signal.Signals | None = None  # that arrived

    def __enter__(self) -> Self:
        for number in self._signals:
            asyncio.get_running_loop().add_signal_handler(number, self._arrive, number)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        for number in self._signals:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _arrive(self, number: signal.Signals) -> None:
        self.last = number
        self._arrived.set()

    async def during(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Return what `work` returns. The next signal, or one that came before, cancels it: raises `Interrupted`."""
        task = asyncio.ensure_future(work)
        signalled = asyncio.ensure_future(self._arrived.wait())
        try:
            await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self._arrived.clear()
            raise Interrupted
        finally:
            task.cancel()
            signalled.cancel()
            await asyncio.gather(task, signalled, return_exceptions=True)
