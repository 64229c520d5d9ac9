"""What the planner answers: changes with their reasons, and what they were derived from."""

from __future__ import annotations

import msgspec

from hpcserve.planner.observation import Observation
from hpcserve.types import Role, WorkerId


class Flip(msgspec.Struct, frozen=True, kw_only=True, tag="flip"):
    """A worker takes another role."""

    worker: WorkerId
    role: Role
    reason: str

    @property
    def text(self) -> str:
        """The decision and its reason, in a sentence."""
        return f"{self.worker} becomes a {self.role} worker: {self.reason}"


class Resize(msgspec.Struct, frozen=True, kw_only=True, tag="resize"):
    """The pools get other sizes."""

    sizes: dict[str, int]  # workers, of every pool
    num_before: int  # workers, of all pools
    roles: dict[Role, int]  # that they will have
    leaving: tuple[WorkerId, ...] = ()  # who had better go, first to last; who is not READY goes before them
    reason: str

    @property
    def text(self) -> str:
        """The decision and its reason, in a sentence."""
        num = sum(self.sizes.values())
        roles = " + ".join(f"{number} {role}" for role, number in self.roles.items() if len(self.roles) > 1)
        return f"{self.num_before} -> {num} workers{f' ({roles})' if roles else ''}: {self.reason}"

    @property
    def kind(self) -> str:
        """For counting."""
        return "grow" if sum(self.sizes.values()) > self.num_before else "shrink"


Decision = Flip | Resize


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers the load of the last intervals needs."""

    prefill: int = 0  # aggregated: to compute prompts
    decode: int = 0  # aggregated: to decode
    least_prefill: int = 0  # fewer do not keep up, and more and more wait
    least_decode: int = 0
    total: int = 0  # disaggregated: of both together; aggregated: whichever is more
    total_now: int = 0  # the same of the last interval alone
    offered: float = 0.0  # workers that would be computing prompts all the time
    kv: float = 0.0  # caches that decoding fills
    backlog_s: float = 0.0  # of prompts that wait to be computed


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one interval called for. `decisions` are to be acted on; `wishes` have not been wanted for long enough."""

    need: Need
    decisions: tuple[Decision, ...] = ()
    wishes: tuple[str, ...] = ()


class PlanLine(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that was made, as it is kept in `plan.jsonl`."""

    at: float  # Unix time
    decision: Decision
    text: str
    is_applied: bool


class PlanReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `hpcserve plan` shows."""

    is_enabled: bool
    observation: Observation | None  # None: the first interval is not over
    plan: Plan | None
    lines: tuple[PlanLine, ...]  # the last decisions, oldest first


def kind_of(decision: Decision) -> str:
    """Return "flip", "grow" or "shrink"."""
    return "flip" if isinstance(decision, Flip) else decision.kind
