"""What the router is asked, and what it answers."""

from __future__ import annotations

import msgspec

from hpcserve.types.ids import BlockHash, RequestId, WorkerId


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asks, as far as routing has to know."""

    tenant: str = ""  # whom fair shares are counted for: the name of the API key
    session: str | None = None  # what belongs together, where the client says so


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the router is told of a request. `block_hashes` cover the full blocks of the prompt, in order."""

    request_id: RequestId
    block_hashes: list[BlockHash]
    num_tokens: int  # of the prompt, resumed tokens included
    max_tokens: int
    priority: int = 0
    exclude: tuple[WorkerId, ...] = ()  # workers that this request was lost on
    caller: Caller = Caller()


class Assignment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a request runs. Without `prefill` the decode worker computes the prompt itself.

    With `source`, the worker that computes the prompt first pulls the KV of its first `source_tokens` from there.
    """

    request_id: RequestId
    decode: WorkerId
    prefill: WorkerId | None = None
    cached_tokens: int = 0  # prompt tokens expected in the cache of the worker that computes the prompt
    source: WorkerId | None = None
    source_tokens: int = 0
    reused_tokens: int = 0  # leading prompt tokens that some worker holds already: likely to be asked for again
