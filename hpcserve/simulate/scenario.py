"""What is simulated: sizes, speeds and rules. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcserve.config.models import RouterConfig
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.transfer import TRANSPORT
from hpcserve.errors import ConfigError
from hpcserve.simulate.trace import TRACE_BLOCK
from hpcserve.types import EngineInfo


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One fleet and the load on it. Either `workers` that do both, or `prefill` and `decode` workers."""

    workers: int = 1
    prefill: int = 0
    decode: int = 0
    router: RouterConfig = field(default_factory=RouterConfig)
    limits: Limits = field(
        default_factory=lambda: Limits(num_blocks=16384, block_size=64, max_num_seqs=256, max_batched_tokens=8192)
    )
    timing: TimingModel = field(default_factory=TimingModel)
    slow: tuple[tuple[int, float], ...] = ()  # (n, f): the n-th worker of every pool computes f times as long
    speed: float = 1.0  # arrivals come so many times faster than recorded
    kv_events: bool = True  # whether engines tell what they hold; if not, the router has to guess
    event_delay_s: float = 0.0  # from an engine's step to the router's index
    report_interval_s: float = 1.0  # between two load reports of a worker that is busy
    planner: PlannerConfig = field(default_factory=PlannerConfig)  # only where the planner acts
    start_s: float = 60.0  # from the start of a worker's job until it is READY
    queue_s: float = 0.0  # that a job waits before it starts
    slo_ttft_ms: float | None = None  # None: any is good
    slo_itl_ms: float | None = None  # of a request's mean

    @property
    def is_disaggregated(self) -> bool:
        """Whether prefill and decode have workers of their own."""
        return self.prefill > 0

    @property
    def num_workers(self) -> int:
        """Workers of all roles."""
        return self.prefill + self.decode if self.is_disaggregated else self.workers

    @property
    def size(self) -> str:
        """Return the fleet in words, such as "8" or "2 prefill + 6 decode"."""
        return f"{self.prefill} prefill + {self.decode} decode" if self.is_disaggregated else str(self.workers)

    def timing_of(self, index: int) -> TimingModel:
        """Return how long the `index`-th worker of a pool computes."""
        return self.timing.times(dict(self.slow).get(index, 1.0))

    @property
    def engine_info(self) -> EngineInfo:
        """What the router is told of each worker's engine."""
        return EngineInfo(
            engine="mock",
            model="trace",
            block_size=self.limits.block_size,
            num_kv_blocks=self.limits.num_blocks,
            max_model_len=self.limits.num_blocks * self.limits.block_size,
            kv_transport=TRANSPORT,
            has_kv_events=self.kv_events,
        )

    def check(self) -> None:
        """Raise `ConfigError` for what cannot be simulated."""
        if (self.prefill > 0) != (self.decode > 0):
            raise ConfigError(
                f"{self.prefill} prefill and {self.decode} decode workers: at least one of each is needed"
            )
        if self.num_workers < 1:
            raise ConfigError("no workers: at least one is needed")
        if TRACE_BLOCK % self.limits.block_size:
            raise ConfigError(
                f"a block size of {self.limits.block_size} tokens does not divide the trace's {TRACE_BLOCK}"
            )
        if self.speed <= 0:
            raise ConfigError(f"speed is {self.speed}, must be above 0")
