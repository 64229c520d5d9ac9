"""What the CLI needs of `hpcserve.serve`, and where it gets it: the real module, or what a test put into `ctx.obj`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, cast

import click

if TYPE_CHECKING:
    from hpcserve.config import Config
    from hpcserve.planner import PlanReport
    from hpcserve.state import StateDir
    from hpcserve.types import Status


class Backend(Protocol):
    """The functions of `hpcserve.serve`; their contracts are there."""

    def start(
        self,
        config: Config,
        *,
        given: Collection[str] | None = None,
        wrong: Sequence[str] = (),
        on_adopting: Callable[[str], None] = ...,
    ) -> StateDir:
        """Check everything and spawn the head."""
        ...

    def render_jobs(self, config: Config) -> list[tuple[str, str]]:
        """Return (worker name, job script) for each worker; submit nothing."""
        ...

    def watch(self, state: StateDir) -> AsyncIterator[Status]:
        """Yield every status until the head is gone."""
        ...

    async def fetch_status(self, state: StateDir) -> Status:
        """Return the status, of a dead head too."""
        ...

    async def fetch_plan(self, state: StateDir) -> PlanReport:
        """Return what the planner sees and decides."""
        ...

    def stop(self, state: StateDir, *, force: bool) -> AsyncIterator[Status]:
        """Yield the way down; return when nothing is left."""
        ...


def backend(ctx: click.Context) -> Backend:
    """Return what this run of the command talks to."""
    obj = ctx.find_root().obj
    if obj is not None:
        return cast(Backend, obj)
    from hpcserve import serve

    return serve


@asynccontextmanager
async def changes(source: AsyncIterator[Status]) -> AsyncIterator[AsyncIterator[Status]]:
    """Iterate over statuses and close the connection behind them on the way out, however that is."""
    try:
        yield source
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()
