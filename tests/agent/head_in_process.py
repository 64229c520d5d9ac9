"""The head's ears in the test's own process: a real Dask scheduler with the plugin, and the roster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hpcserve.comm.tls import security
from hpcserve.config import Config
from hpcserve.head.plugin import RoutingPlugin
from hpcserve.head.roster import Roster
from hpcserve.records import HeadRecord, Proc
from hpcserve.router.router import Router
from hpcserve.state import StateDir
from hpcserve.types import WorkerId, WorkerState


class Head:
    """The head's ears: scheduler, plugin, roster."""

    def __init__(self, config: Config) -> None:
        self.router = Router(config.router, config.engine.block_size)
        self.changed = asyncio.Event()
        self.roster = Roster(self.router, self.changed.set)
        self.plugin = RoutingPlugin(self.roster)

    async def until(self, worker: WorkerId, state: WorkerState) -> None:
        async with asyncio.timeout(20):
            while (info := self.roster.get(worker)) is None or info.state is not state:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def head_on(state: StateDir, config: Config) -> AsyncIterator[Head]:
    from distributed import Scheduler

    head = Head(config)
    identity = security(state.tls_cert, state.tls_key)
    scheduler: Any = Scheduler(
        protocol="tls", host="127.0.0.1", port=0, security=identity, dashboard=False, dashboard_address="127.0.0.1:0"
    )
    async with scheduler:
        scheduler.add_plugin(head.plugin)
        await head.plugin.start(scheduler)
        state.write_head(HeadRecord(proc=Proc.of(os.getpid()), scheduler=scheduler.address, address="none"))
        yield head
        state.clear_head()
