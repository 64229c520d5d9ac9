"""Writes down, every few seconds and at the end, what the tenants of this frontend used. It counts nothing itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Protocol, Self

from hpcserve.errors import DeploymentError
from hpcserve.observability.tenant_metrics import TenantCounts
from hpcserve.usage import Usage

log = logging.getLogger(__name__)

_INTERVAL_S = 5.0


class UsageSink(Protocol):
    """Where totals are kept: a `UsageFile`."""

    def add(self, used: Mapping[str, Usage]) -> None:
        """Add what each tenant used since the last call. May block; raises `DeploymentError`: nothing was added."""
        ...


class UsageRecorder:
    """A context manager: it records while it is entered, and a last time on the way out.

    What cannot be written is kept, and tried again with the next. A frontend that is killed loses an interval.
    """

    def __init__(self, counts: Mapping[str, TenantCounts], sink: UsageSink, *, interval_s: float = _INTERVAL_S) -> None:
        """`counts` are those since the start of this process, by tenant."""
        self._counts = counts
        self._sink = sink
        self._interval_s = interval_s
        self._written: dict[str, Usage] = {}
        self._complaint = ""
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="record usage")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._leaving.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        # It is told to end, not cancelled: a write that was cut off in between might be counted twice.
        while not self._leaving.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), self._interval_s)
            await self._write()
        await self._write()  # what was used while the write before was under way

    async def _write(self) -> None:
        now = {name: Usage(**asdict(counts)) for name, counts in self._counts.items()}
        new = {name: each.since(self._written.get(name, Usage())) for name, each in now.items()}
        new = {name: each for name, each in new.items() if each.requests or each.prompt_tokens or each.generated_tokens}
        if not new:
            return
        try:
            await asyncio.to_thread(self._sink.add, new)
        except DeploymentError as err:
            if err.message != self._complaint:
                log.error("what tenants use is not recorded: %s", err.message)
            self._complaint = err.message
            return
        self._complaint = ""
        self._written = now
