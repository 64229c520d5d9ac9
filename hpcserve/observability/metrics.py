"""What the service counts, in a registry of its own. Names follow vLLM's and Dynamo's, with the prefix `hpcserve_`.

Everything is written by one event loop and scraped on it, so counting takes no lock. What the status of the deployment
says (workers, their load) is read when Prometheus asks, and kept nowhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hpcserve.observability.samples import Samples, add_to, samples_of
from hpcserve.observability.tenant_metrics import TenantCounts, tenant_families
from hpcserve.observability.worker_metrics import build_info, worker_families
from hpcserve.types import FinishReason, Status, Traffic

TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_E2E_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 3840)
_QUEUE_S = (*TTFT_S, 320, 640)
_PAUSE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80, 160)
_NOT_ADDED = frozenset({"process_start_time_seconds", "process_max_fds"})
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))


class LocalHistogram:
    """A histogram that one thread observes: a bisection an observation, and no lock."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float]) -> None:
        self._name, self._help = name, help_text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation, in the unit of the name."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def counts(self) -> tuple[int, ...]:
        """Observations by bucket, the last one's bound being infinity."""
        return tuple(self._counts)

    def family(self) -> HistogramMetricFamily:
        """Return what Prometheus wants."""
        return HistogramMetricFamily(self._name, self._help, buckets=self.buckets(), sum_value=self._sum)

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets, by upper bound."""
        buckets, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        return buckets

    @property
    def sum(self) -> float:
        """All observations added up."""
        return self._sum


class MovePauses:
    """For how long streams stood still when they were moved: with their KV, or with everything computed again."""

    _NAME, _HELP = "hpcserve_move_pause_seconds", "From a worker's last delta to the next worker's first."

    def __init__(self) -> None:
        self._by_kv = {kind: LocalHistogram(self._NAME, self._HELP, _PAUSE_S) for kind in ("pulled", "recomputed")}

    def observe(self, seconds: float, *, with_kv: bool) -> None:
        """Count one move of a sequence that had begun."""
        self._by_kv["pulled" if with_kv else "recomputed"].observe(seconds)

    def num(self, kind: str) -> int:
        """Return how many were counted: "pulled" or "recomputed"."""
        return sum(self._by_kv[kind].counts)

    @property
    def seconds(self) -> float:
        """All pauses added up."""
        return sum(histogram.sum for histogram in self._by_kv.values())

    def family(self) -> HistogramMetricFamily:
        """Return both, told apart by the label `kv`."""
        family = HistogramMetricFamily(self._NAME, self._HELP, labels=["kv"])
        for kind, histogram in self._by_kv.items():
            family.add_metric([kind], histogram.buckets(), histogram.sum)
        return family


def _queue_histogram() -> LocalHistogram:
    return LocalHistogram("hpcserve_queue_seconds", "From asking for a worker to getting one.", _QUEUE_S)


@dataclass
class DispatchCounts:
    """What happened to sequences between frontend and engines. Written by the dispatcher."""

    queue: LocalHistogram = field(default_factory=_queue_histogram)  # how long they waited for a worker
    overloaded: int = 0  # not taken because too many wait, or not placed before they had waited too long

    reassigned: int = 0  # given to another worker after theirs was lost or left
    pauses: MovePauses = field(default_factory=MovePauses)  # of those that had begun
    remote_prefills: int = 0  # prompts computed by another worker than the one that decoded
    prefills_lost: int = 0  # of those, lost on the way: the decode worker computed the prompt
    prefixes_pulled: int = 0  # warm prefixes handed from one worker to another instead of being computed again
    pulls_lost: int = 0  # of those, not handed over after all: the prefix was computed


class ServiceMetrics:
    """Counters of one frontend process. The fields are written directly; `render` gives the exposition text."""

    def __init__(self, status: Callable[[], Status], dispatch: DispatchCounts | None = None) -> None:
        """`status` is called at every scrape."""
        self._status = status
        self.siblings: Callable[[], Awaitable[Samples]] | None = None  # what other frontends of the deployment counted
        self.num_headless: Callable[[], int] = lambda: 0  # requests that wait for a head
        self._dispatch = dispatch or DispatchCounts()
        self.requests: Counter[tuple[str, int]] = Counter()  # by route and HTTP status; 499: the client hung up
        self.finished: Counter[str] = Counter(dict.fromkeys(get_args(FinishReason), 0))  # sequences by finish reason
        self.inflight = 0  # HTTP requests that generate
        self.queued = 0  # of those, without a first output yet
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.cached_tokens = 0  # prompt tokens found in an engine's prefix cache
        self.pulled_tokens = 0  # prompt tokens whose KV came from another worker
        self.tenants: defaultdict[str, TenantCounts] = defaultdict(TenantCounts)  # by name
        self.disconnects = 0
        self.slow_clients = 0
        self.ttft = LocalHistogram("hpcserve_time_to_first_token_seconds", "From request to first delta.", TTFT_S)
        self.itl = LocalHistogram("hpcserve_inter_token_latency_seconds", "Between two deltas of a sequence.", ITL_S)
        self.e2e = LocalHistogram("hpcserve_e2e_request_latency_seconds", "From request to last delta.", _E2E_S)
        self.tpot = LocalHistogram(
            "hpcserve_request_time_per_output_token_seconds", "Of a request, after its first delta.", ITL_S
        )
        self.prompt_size = LocalHistogram("hpcserve_request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.generation_size = LocalHistogram(
            "hpcserve_request_generation_tokens", "Tokens generated for a request.", _TOKENS
        )
        self._process = ProcessCollector(registry=None)

    def render(self, *, with_tenants: bool = True, others: Samples | None = None, more: Iterable[Metric] = ()) -> bytes:
        """Return all metrics in Prometheus' text format, or all that name no tenant.

        `others` is what other frontends of the deployment have counted, which is added; `more` is of all already.
        """
        families = [*add_to(self._counted(), others or {}), build_info(), *worker_families(self._status()), *more]
        if with_tenants:
            families += add_to(tenant_families(self.tenants), others or {})
        return generate_latest(_Collected(families))

    def samples(self) -> Samples:
        """Return what other frontends add to their own: all that this one counted."""
        counted = samples_of([*self._counted(), *tenant_families(self.tenants)])
        return {name: family for name, family in counted.items() if name not in _NOT_ADDED}

    def traffic(self) -> Traffic:
        """Return what the head is told of this frontend."""
        return Traffic(
            ttft=self.ttft.counts,
            itl=self.itl.counts,
            running=self.inflight,
            queued=self.queued,
            finished=self.finished.total(),
            remote_prefills=self._dispatch.remote_prefills,
            prefix_pulls=self._dispatch.prefixes_pulled,
            moved=self._dispatch.reassigned,
        )

    def _counted(self) -> Iterable[Metric]:
        """Yield every family of this process but those of tenants: they name who else there is."""
        yield from self._process.collect()
        yield _counter("hpcserve_requests", "HTTP requests.", ("route", "status"), self.requests)
        reasons = {(reason,): count for reason, count in self.finished.items()}
        yield _counter("hpcserve_request_success", "Sequences that ended.", ("finished_reason",), reasons)
        for name, text, value in self._plain_counters():
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily("hpcserve_inflight_requests", "Requests that generate now.", value=self.inflight)
        yield GaugeMetricFamily("hpcserve_queued_requests", "Requests without a first token yet.", value=self.queued)
        headless = self.num_headless()
        yield GaugeMetricFamily("hpcserve_headless_requests", "Requests that wait for a lost head.", value=headless)
        sizes = (self.prompt_size, self.generation_size)
        for histogram in (self.ttft, self.itl, self.tpot, self.e2e, self._dispatch.queue, *sizes):
            yield histogram.family()
        yield self._dispatch.pauses.family()

    def _plain_counters(self) -> list[tuple[str, str, int]]:
        return [
            ("hpcserve_prompt_tokens", "Prompt tokens of finished requests.", self.prompt_tokens),
            ("hpcserve_generation_tokens", "Generated tokens.", self.generation_tokens),
            ("hpcserve_cached_prompt_tokens", "Prompt tokens found in a prefix cache.", self.cached_tokens),
            ("hpcserve_pulled_prompt_tokens", "Prompt tokens with KV from another worker.", self.pulled_tokens),
            ("hpcserve_overloaded", "Sequences refused, or kept waiting too long.", self._dispatch.overloaded),
            (
                "hpcserve_reassignments",
                "Sequences moved off a worker that was lost or left.",
                self._dispatch.reassigned,
            ),
            ("hpcserve_remote_prefills", "Prompts computed by a prefill worker.", self._dispatch.remote_prefills),
            ("hpcserve_lost_prefills", "Prompts lost with a prefill worker.", self._dispatch.prefills_lost),
            ("hpcserve_prefix_pulls", "Warm prefixes moved between workers.", self._dispatch.prefixes_pulled),
            ("hpcserve_lost_prefix_pulls", "Warm prefixes that could not be moved.", self._dispatch.pulls_lost),
            ("hpcserve_client_disconnects", "Clients that hung up early.", self.disconnects),
            ("hpcserve_slow_clients_dropped", "Clients dropped for not reading.", self.slow_clients),
        ]


class _Collected(Collector):
    """Families as `prometheus_client` asks for them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _counter(
    name: str, text: str, labels: Sequence[str], values: dict[tuple[str, int], int] | dict[tuple[str], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([str(part) for part in key], value)
    return family
