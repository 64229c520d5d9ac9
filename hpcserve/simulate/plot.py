"""Draws a replay: distributions of latencies, load and caches over time. The one home of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from hpcserve.errors import ConfigError
from hpcserve.simulate.timeline import Timeline

_NS_PER_MS = 1e6
_NUM_POINTS = 150  # of a worker's curve


def check_plotting() -> None:
    """Raise `ConfigError` if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as err:
        raise ConfigError("--plot needs matplotlib: pip install 'hpcserve[plot]'") from err


def draw(timeline: Timeline, path: Path) -> None:
    """Write a PNG. Raises `ConfigError` if that fails, or if matplotlib is not installed."""
    check_plotting()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    _draw_latencies(axes[0][0], timeline)
    _draw_gaps(axes[0][1], timeline)
    for worker, track in sorted(timeline.tracks.items()):
        axes[1][0].plot(*_smooth(track.times_s, track.requests), label=worker, linewidth=0.8)
        axes[1][1].plot(*_smooth(track.times_s, track.cached_blocks), label=worker, linewidth=0.8)
    _label(axes[1][0], "requests running or waiting", "s", "requests")
    _label(axes[1][1], "KV blocks in the cache", "s", "blocks")
    axes[1][0].legend(fontsize="small")
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as err:
        raise ConfigError(f"cannot write the plot {path}: {err.strerror or err}") from err


def _draw_latencies(axis: Any, timeline: Timeline) -> None:
    for label, values in (("time to first token", timeline.ttft_ms), ("end to end", timeline.e2e_ms)):
        ordered = sorted(values)
        axis.plot(ordered, _shares([1] * len(ordered)), label=label)
    axis.set_xscale("log")
    axis.legend()
    _label(axis, "latency of requests", "ms", "share")


def _draw_gaps(axis: Any, timeline: Timeline) -> None:
    ordered = sorted(timeline.itl_ns.items())
    axis.plot([gap / _NS_PER_MS for gap, _ in ordered], _shares([count for _, count in ordered]))
    axis.set_xscale("log")
    _label(axis, "time between tokens", "ms", "share")


def _smooth(times_s: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return means over runs of samples, so that a long trace stays readable."""
    size = -(-len(times_s) // _NUM_POINTS)
    runs = [slice(start, start + size) for start in range(0, len(times_s), size)]
    return [fmean(times_s[run]) for run in runs], [fmean(values[run]) for run in runs]


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [seen / total for seen in accumulate(counts)]


def _label(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
