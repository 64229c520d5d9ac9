"""One request as the scheduler sees it: numbers of tokens and names of blocks, but no tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from hpcserve.types import BlockHash, RequestId


class Writer(Protocol):
    """Writes the output of one sequence. The engine writes tokens and text; a simulator counts."""

    def write(self) -> bool:
        """Add one token. Returns whether it was the last."""
        ...

    def name_block(self, index: int) -> BlockHash | None:
        """Return the name of the full block `index`, which holds generated tokens; None: it shall not be found."""
        ...


class SequenceState(Enum):
    """Where a sequence is."""

    WAITING = auto()  # holds no blocks
    PULLING = auto()  # holds blocks that are being filled from another worker
    LANDED = auto()  # its blocks are filled; it waits to run
    RUNNING = auto()
    DONE = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Private state of the scheduler, but for the fields that are given to it."""

    request_id: RequestId
    num_prompt: int  # tokens
    names: list[BlockHash]  # of the full blocks known so far; grows with the output
    writer: Writer
    priority: int = 0  # lower runs first
    prefill_only: bool = False  # its one token comes with the prefill pass
    pull_tokens: int = 0  # leading prompt tokens whose KV another worker offers
    reused_tokens: int = 0  # leading prompt tokens that were asked for before; see `EngineRequest`
    moves_away: bool = False  # another worker takes its KV over
    order: int = 0  # of arrival
    state: SequenceState = SequenceState.WAITING
    num_tokens: int = field(init=False)  # prompt and output
    num_computed: int = 0  # leading tokens whose KV is here
    num_named: int = 0  # leading blocks that the prefix cache was told of
    blocks: list[int] = field(default_factory=list)
    cached_tokens: int | None = None  # prompt tokens found here when it first ran
    most_cached_tokens: int = 0  # prompt tokens found here when it ran, first or after a preemption
    pulled_tokens: int = 0  # prompt tokens fetched from another worker
    pull_s: float | None = None  # how long that took
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        self.num_tokens = self.num_prompt
