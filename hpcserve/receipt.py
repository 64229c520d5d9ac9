"""What a deployment has used and what came of it, from the lives of its workers. Pure, but for its own file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from hpcserve.state import StateDir
from hpcserve.types import EndCause
from hpcserve.usage import Usage, UsageFile
from hpcserve.worker_log import WorkerLife


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's time on a node, which may not be over. Times are Unix seconds."""

    worker: str
    job_id: str
    started_at: float
    ready_at: float | None
    ended_at: float  # or now
    num_gpus: int
    busy_s: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cause: EndCause | None = None  # None: it lives

    @property
    def seconds(self) -> float:
        """How long it had its node."""
        return max(0.0, self.ended_at - self.started_at)

    @property
    def loading_s(self) -> float:
        """How much of that was over before it was READY."""
        return min(self.seconds, max(0.0, (self.ready_at or self.ended_at) - self.started_at))


class Accounting(msgspec.Struct, frozen=True, kw_only=True):
    """The same by the site's own books."""

    hours: float  # in the receipt's unit
    num_jobs: int
    differences: tuple[str, ...] = ()


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What one life of a deployment has used. Shares are of `hours`, 0 to 1."""

    name: str
    began_at: float  # Unix time
    until: float  # Unix time
    is_final: bool  # whether nothing of it runs any more
    unit: str  # "GPU-hours", "node-hours" or "worker-hours"
    hours: float
    worker_hours: float
    loading_share: float
    busy_share: float
    idle_share: float
    num_workers: int  # that ever ran
    num_alive: int
    num_requests: int | None  # None: not counted
    prompt_tokens: int
    generated_tokens: int
    ends: dict[EndCause, int] = {}
    accounting: Accounting | None = None  # None: there is none here

    def per_hour(self, amount: float) -> float | None:
        """Return an amount over the hours used; None where none were."""
        return amount / self.hours if self.hours > 0 else None


def stay_of(life: WorkerLife) -> Stay | None:
    """Return a life's time on its node; None if it never had one."""
    if life.started_at is None:
        return None
    return Stay(
        worker=life.worker,
        job_id=life.job_id,
        started_at=life.started_at,
        ready_at=life.ready_at,
        ended_at=life.ended_at,
        num_gpus=life.num_gpus,
        busy_s=life.busy_s,
        prompt_tokens=life.prompt_tokens,
        generated_tokens=life.generated_tokens,
        cause=life.cause,
    )


def with_likely_gpus(stays: Sequence[Stay], usual: int) -> list[Stay]:
    """Return the stays; those of which nobody knows the GPUs get as many as the others have, else `usual`."""
    known = Counter(stay.num_gpus for stay in stays if stay.num_gpus)
    likely = known.most_common(1)[0][0] if known else usual
    return [stay if stay.num_gpus else msgspec.structs.replace(stay, num_gpus=likely) for stay in stays]


def add_up(
    name: str,
    stays: Iterable[Stay],
    *,
    began_at: float,
    until: float,
    whole_nodes: bool,
    num_requests: int | None,
    ends: dict[EndCause, int],
    is_final: bool,
) -> Receipt:
    """Return the receipt without the site's books. A worker counts by its GPUs; where none has any, by itself."""
    stays = list(stays)
    has_gpus = any(stay.num_gpus for stay in stays)
    weights = [(stay.num_gpus if has_gpus else 1) / 3600 for stay in stays]
    paired = list(zip(stays, weights, strict=True))
    hours = sum(stay.seconds * weight for stay, weight in paired)
    loading = sum(stay.loading_s * weight for stay, weight in paired)
    busy = sum(min(stay.busy_s, stay.seconds - stay.loading_s) * weight for stay, weight in paired)
    return Receipt(
        name=name,
        began_at=began_at,
        until=until,
        is_final=is_final,
        unit="GPU-hours" if has_gpus else "node-hours" if whole_nodes else "worker-hours",
        hours=hours,
        worker_hours=sum(stay.seconds for stay in stays) / 3600,
        loading_share=loading / hours if hours else 0.0,
        busy_share=busy / hours if hours else 0.0,
        idle_share=max(0.0, 1 - (busy + loading) / hours) if hours else 0.0,
        num_workers=len(stays),
        num_alive=sum(stay.cause is None for stay in stays),
        num_requests=num_requests,
        prompt_tokens=sum(stay.prompt_tokens for stay in stays),
        generated_tokens=sum(stay.generated_tokens for stay in stays),
        ends=ends,
    )


class ReceiptFile:
    """The last receipt of a deployment, and the counts that it begins with."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self.path = state.path / "receipt.json"
        self._before = state.path / "usage-before.json"

    def begin(self) -> None:
        """Begin a new life: what tenants used before it is not on its receipt."""
        self.path.unlink(missing_ok=True)
        self._state.write_private(self._before, msgspec.json.encode(UsageFile(self._state).read()))

    def num_requests(self) -> int | None:
        """Return the requests with keys that were answered in this life; None where none were counted."""
        before = self._read_before()
        now = UsageFile(self._state).read()
        used = [usage.since(before.get(name, Usage())) for name, usage in now.items()]
        return sum(usage.requests - usage.rate_limited for usage in used) or None

    def write(self, receipt: Receipt) -> None:
        """Keep it."""
        self._state.write_private(self.path, msgspec.json.format(msgspec.json.encode(receipt)))

    def read(self) -> Receipt | None:
        """Return the one that was kept; None if there is none that can be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Receipt)
        except (OSError, msgspec.MsgspecError):
            return None

    def _read_before(self) -> dict[str, Usage]:
        try:
            return msgspec.json.decode(self._before.read_bytes(), type=dict[str, Usage])
        except (OSError, msgspec.MsgspecError):
            return {}
