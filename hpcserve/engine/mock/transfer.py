"""Handles of the mock transport. A handle says which blocks it stands for, and pulling takes simulated time.

Nothing is moved and the source is never asked, so a handle of a worker that died in the meantime still works, unless a
real transport was asked for (`mover`). `params={"fail": True}` is how a test makes a transfer fail.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from hpcserve.types import BlockHash, KvHandle, WorkerId

TRANSPORT = "mock"
LEASE_S = 30.0
"""How long a handle is good, as with NIXL."""


def make_handle(source: WorkerId, num_tokens: int, names: Sequence[BlockHash], unix_now: float) -> KvHandle:
    """Return a handle for a prompt of `num_tokens` whose full blocks are `names`."""
    params = {"id": uuid.uuid4().hex, "hashes": list(names), "expires_at": unix_now + LEASE_S}
    return KvHandle(transport=TRANSPORT, source=source, num_tokens=num_tokens, params=params)


def is_good(handle: KvHandle, unix_now: float, transport: str = TRANSPORT) -> bool:
    """Return whether a pull can succeed: the right transport, made here, not expired, not made to fail."""
    expires_at = handle.params.get("expires_at")
    return (
        handle.transport == transport
        and isinstance(expires_at, int | float)
        and unix_now < expires_at
        and not handle.params.get("fail")
    )


def tokens_covered(handle: KvHandle, num_prompt: int, names: Sequence[BlockHash], block_size: int) -> int:
    """Return how many leading tokens of a prompt the handle holds; `names` are those of the prompt's full blocks."""
    offered = handle.params.get("hashes")
    if not isinstance(offered, list):
        return 0
    num_common = 0
    for theirs, ours in zip(offered, names, strict=False):
        if theirs != ours:
            break
        num_common += 1
    covered = handle.num_tokens if num_common == len(offered) else num_common * block_size
    return min(covered, num_prompt)
