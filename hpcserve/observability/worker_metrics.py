"""Prometheus families of what a `Status` says about the deployment and its workers. Computed, never stored."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hpcserve import __version__
from hpcserve.types import EndCause, LoadReport, Status

_GAUGES: tuple[tuple[str, str, Callable[[LoadReport], float | None]], ...] = (
    ("num_requests_running", "Sequences that the engine computes.", lambda load: load.num_running),
    ("num_requests_waiting", "Sequences that wait in the engine.", lambda load: load.num_waiting),
    ("waiting_prompt_tokens", "Prompt tokens not computed yet.", lambda load: load.waiting_tokens),
    ("kv_cache_usage_ratio", "Share of KV blocks in use.", lambda load: load.kv_usage),
    ("prefill_tokens_per_second", "Measured while prefilling.", lambda load: load.prefill_tokens_per_s),
    ("decode_tokens_per_second", "Measured while decoding.", lambda load: load.decode_tokens_per_s),
    ("kv_pull_tokens_per_second", "Of one pull, besides its latency.", lambda load: load.pull_tokens_per_s),
    ("kv_pull_latency_seconds", "Of a pull, besides moving its tokens.", lambda load: _seconds(load.pull_latency_ms)),
)
_COUNTERS: tuple[tuple[str, str, Callable[[LoadReport], float]], ...] = (
    ("prompt_tokens", "Prompt tokens that the engine took.", lambda load: load.prompt_tokens_total),
    ("generation_tokens", "Tokens that the engine generated.", lambda load: load.generated_tokens_total),
    ("prefix_cache_hits", "Prompt tokens found in its cache.", lambda load: load.cached_tokens_total),
    ("kv_pulled_tokens", "Prompt tokens pulled from a peer.", lambda load: load.pulled_tokens_total),
    ("kv_pull_failures", "Pulls that failed and were recomputed.", lambda load: load.pull_failures_total),
    ("prefill_seconds", "Time that the engine computed prompts.", lambda load: load.work.prefill_s),
    ("decode_seconds", "Time that the engine decoded.", lambda load: load.work.decode_s),
)


def build_info() -> Metric:
    """Return which hpcserve this is."""
    family = GaugeMetricFamily("hpcserve_build_info", "Always 1.", labels=("version", "python"))
    family.add_metric((__version__, platform.python_version()), 1)
    return family


def worker_families(status: Status) -> Iterator[Metric]:
    """Yield what the deployment is, which workers it has, and the load that each one reported last."""
    info = GaugeMetricFamily(
        "hpcserve_info", "The deployment.", labels=("name", "model", "mode", "policy", "cluster", "phase")
    )
    info.add_metric((status.name, status.model, status.mode, status.policy, status.cluster, str(status.phase)), 1)
    yield info
    yield GaugeMetricFamily("hpcserve_start_time_seconds", "Unix time of the head's start.", value=status.started_at)
    yield GaugeMetricFamily("hpcserve_warnings", "Warnings that the status shows.", value=len(status.warnings))
    yield GaugeMetricFamily(
        "hpcserve_waiting_requests", "Requests that no worker was chosen for yet.", value=status.num_waiting
    )
    yield GaugeMetricFamily(
        "hpcserve_backfilling_requests", "Requests of batches that wait for room.", value=status.num_backfilling
    )
    yield from _states(status)
    yield from _engines(status)
    yield from _ends(status)
    yield _planned(status)
    loads = {str(worker): load for worker, load in status.load.items()}
    yield from _loads(loads)


def _states(status: Status) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "hpcserve_worker_state", "1 for the state it is in.", labels=("worker", "pool", "role", "state")
    )
    for worker in status.workers:
        state.add_metric((worker.worker, worker.pool, str(worker.role), str(worker.state)), 1)
    yield state
    by_state = GaugeMetricFamily("hpcserve_workers", "Workers by pool and state.", labels=("pool", "state"))
    counts = Counter((worker.pool, str(worker.state)) for worker in status.workers)
    for key, count in counts.items():
        by_state.add_metric(key, count)
    yield by_state
    wanted = GaugeMetricFamily("hpcserve_workers_wanted", "Workers that a pool should have.", labels=("pool",))
    for pool, number in status.wanted.items():
        wanted.add_metric((pool,), number)
    yield wanted


def _engines(status: Status) -> Iterator[Metric]:
    """Yield what does not change while a worker lives."""
    info = GaugeMetricFamily(
        "hpcserve_worker_info", "Always 1.", labels=("worker", "pool", "engine", "kv_transport", "host", "job")
    )
    blocks = GaugeMetricFamily("hpcserve_worker_kv_cache_blocks", "Size of the KV cache.", labels=("worker",))
    ends = GaugeMetricFamily("hpcserve_worker_end_time_seconds", "Unix time of its job's end.", labels=("worker",))
    for worker in status.workers:
        if worker.ends_at is not None and not worker.state.is_final:
            ends.add_metric((worker.worker,), worker.ends_at)
        if (engine := worker.engine) is not None:
            names = (engine.engine, engine.kv_transport or "none", worker.host or "", worker.job_id or "")
            info.add_metric((worker.worker, worker.pool, *names), 1)
            blocks.add_metric((worker.worker,), engine.num_kv_blocks)
    yield from (info, blocks, ends)


def _ends(status: Status) -> Iterator[Metric]:
    ends = CounterMetricFamily("hpcserve_worker_ends", "Workers that ended, by why.", labels=("cause",))
    for cause in EndCause:  # all of them: a counter that appears with its first one cannot be seen to have risen
        ends.add_metric((str(cause),), status.ends.get(cause, 0))
    yield ends
    yield GaugeMetricFamily(
        "hpcserve_excluded_nodes", "Nodes that get no more workers.", value=len(status.excluded_nodes)
    )


def _planned(status: Status) -> Metric:
    planned = CounterMetricFamily("hpcserve_planner_decisions", "Decisions of the planner.", labels=("kind",))
    for kind in ("flip", "grow", "shrink"):
        planned.add_metric((kind,), status.num_planned.get(kind, 0))
    return planned


def _loads(loads: dict[str, LoadReport]) -> Iterator[Metric]:
    for name, text, read in _GAUGES:
        gauge = GaugeMetricFamily(f"hpcserve_worker_{name}", text, labels=("worker",))
        for worker, load in loads.items():
            if (value := read(load)) is not None:
                gauge.add_metric((worker,), value)
        yield gauge
    for name, text, read in _COUNTERS:
        counter = CounterMetricFamily(f"hpcserve_worker_{name}", text, labels=("worker",))
        for worker, load in loads.items():
            counter.add_metric((worker,), read(load))
        yield counter


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3
