"""Who could go on with what a leaving worker runs. Asks the head; who does, the router decides later."""

from __future__ import annotations

import asyncio

from hpcserve.agent.membership import Membership
from hpcserve.errors import HpcserveError
from hpcserve.types import WorkerId, WorkerInfo, WorkerState

_ASK_TIMEOUT_S = 2.0


async def find_peers(membership: Membership, leaving: WorkerId) -> list[WorkerInfo]:
    """Return the other workers that are READY. None without a head: nobody could assign anything to them."""
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            peers = await membership.peers()
    except (TimeoutError, HpcserveError):
        return []
    return [peer for peer in peers if peer.worker != leaving and peer.state is WorkerState.READY and not peer.is_silent]


async def has_taker(membership: Membership, leaving: WorkerId) -> bool:
    """Return whether there is one that decodes."""
    return any(peer.role.decodes for peer in await find_peers(membership, leaving))
