"""Which head the state directory names, watched: a successor's agents and frontends come to it by this alone."""

from __future__ import annotations

import asyncio

from hpcserve.records import HeadRecord
from hpcserve.state import StateDir

POLL_S = 0.5


async def next_head(state: StateDir, known: HeadRecord) -> None:
    """Return when another head is named than `known`, wherever it is reached, which may be never."""
    while True:
        if state.read_head() not in (None, known):
            return
        await asyncio.sleep(POLL_S)


async def other_head(state: StateDir, known: HeadRecord) -> None:
    """Return when a head is named that is to be reached elsewhere than `known`, which may be never.

    A head whose host is gone closes no connection: that another one is named is then the only sign.
    """
    while True:
        if _is_elsewhere(state.read_head(), known):
            return
        await asyncio.sleep(POLL_S)


def _is_elsewhere(named: HeadRecord | None, known: HeadRecord) -> bool:
    return named is not None and (named.scheduler, named.address) != (known.scheduler, known.address)
