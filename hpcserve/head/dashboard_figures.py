"""The figures of the dashboard's page, with Bokeh. They know statuses and points, not where those come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from math import nan
from typing import Any

from bokeh.layouts import column, gridplot
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    DatetimeTickFormatter,
    Div,
    FactorRange,
    InlineStyleSheet,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.plotting import figure

from hpcserve.observability.history import Point
from hpcserve.types import LoadReport, Status, WorkerInfo, WorkerState

_HEIGHT = 240
_NUM_COLUMNS = 3
_MAX_POINTS = 600
_COLORS = ("#4f46e5", "#e08a1e")
_STATE_COLORS = {
    WorkerState.PENDING: "#c7c9d1",
    WorkerState.STARTING: "#93c5fd",
    WorkerState.LOADING: "#60a5fa",
    WorkerState.WARMING: "#2563eb",
    WorkerState.READY: "#22a35a",
    WorkerState.DRAINING: "#e08a1e",
    WorkerState.STOPPED: "#8a8f9c",
    WorkerState.FAILED: "#d03a3a",
}
# title, axis, and the series: field of a point and its name
_TIMELINES = (
    ("Queue", "sequences", (("running", "running"), ("waiting", "waiting"))),
    ("Tokens", "tokens/s", (("generated_tokens_per_s", "generated"), ("prompt_tokens_per_s", "prompt"))),
    ("Time to first token", "ms", (("ttft_p50_ms", "p50"), ("ttft_p90_ms", "p90"))),
    ("Inter-token latency", "ms", (("itl_p50_ms", "p50"), ("itl_p90_ms", "p90"))),
    ("Prefix hits", "share of prompt tokens", (("prefix_hits", "hits"),)),
    ("KV pulled", "tokens/s", (("pulled_tokens_per_s", "pulled from another worker"),)),
    (
        "Transfers",
        "a second",
        (("remote_prefills_per_s", "prompts computed elsewhere"), ("prefix_pulls_per_s", "warm prefixes pulled")),
    ),
)
_COLUMNS = ("worker", "pool", "state", "host", "running", "waiting", "KV", "hits")
_TABLE_STYLE = """
:host { overflow: auto }
table { border-collapse: collapse; width: 100%; font: 12px system-ui, sans-serif }
th, td { border-bottom: 1px solid #ddd; padding: 4px 8px; text-align: left }
"""


class Figures:
    """The figures of one open page, each with the data that it shows."""

    def __init__(self) -> None:
        self.newest = 0.0  # Unix time of the last point
        self._points = ColumnDataSource({name: [] for name in Point.__struct_fields__})
        self._pools = ColumnDataSource({"pool": [], **{str(state): [] for state in WorkerState}})
        self._workers = ColumnDataSource({"worker": [], "kv_usage": []})
        # Bokeh's DataTable shows nothing new of a source that stays as long as it is.
        self._table = Div(stylesheets=[InlineStyleSheet(css=_TABLE_STYLE)], sizing_mode="stretch_width")
        self._by_pool, self._by_worker = _pool_figure(self._pools), _kv_figure(self._workers)
        timelines: list[Any] = []
        for title, unit, series in _TIMELINES:
            timelines.append(_timeline(title, unit, series, self._points, timelines[0].x_range if timelines else None))
        figures = [self._by_pool, self._by_worker, *timelines]
        grid = gridplot(figures, ncols=_NUM_COLUMNS, toolbar_location=None, sizing_mode="stretch_width", height=_HEIGHT)
        self.layout = column(self._table, grid, sizing_mode="stretch_width")

    def add_points(self, points: Sequence[Point]) -> None:
        """Add points that are newer than those before."""
        if not points:
            return
        new = {name: [_number(getattr(point, name)) for point in points] for name in Point.__struct_fields__}
        new["at"] = [point.at * 1e3 for point in points]  # Bokeh's dates are milliseconds
        self._points.stream(new, rollover=_MAX_POINTS)
        self.newest = points[-1].at

    def show_workers(self, status: Status) -> None:
        """Show who there is, in which state and with which load."""
        counts = Counter((each.pool, each.state) for each in status.workers)
        pools = list(dict.fromkeys((*status.wanted, *(each.pool for each in status.workers))))
        self._by_pool.y_range.factors = pools[::-1]
        _set(
            self._pools,
            {"pool": pools, **{str(state): [counts[pool, state] for pool in pools] for state in WorkerState}},
        )
        alive = [each for each in status.workers if not each.state.is_final]
        self._by_worker.y_range.factors = [each.worker for each in reversed(alive)]
        used = [status.load[each.worker].kv_usage if each.worker in status.load else 0.0 for each in alive]
        _set(self._workers, {"worker": [each.worker for each in alive], "kv_usage": used})
        self._table.text = _table([_row(each, status.load.get(each.worker)) for each in status.workers])


def _set(source: ColumnDataSource, data: dict[str, list[Any]]) -> None:
    """Send data to the browser only if it is new there."""
    if source.data != data:
        source.data = data


def _row(info: WorkerInfo, load: LoadReport | None) -> tuple[str, ...]:
    who = (info.worker, info.pool, str(info.state), info.host or "")
    if load is None:
        return (*who, "", "", "", "")
    reused, prompts = load.cached_tokens_total + load.pulled_tokens_total, load.prompt_tokens_total
    hits = f"{reused / prompts:.0%}" if prompts else ""
    return (*who, str(load.num_running), str(load.num_waiting), f"{load.kv_usage:.0%}", hits)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in _COLUMNS)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _pool_figure(source: ColumnDataSource) -> Any:
    states = [str(state) for state in WorkerState]
    plot = figure(title="Workers by pool and state", y_range=FactorRange(), tools="hover", **_frame())
    plot.x_range.start = 0
    plot.hbar_stack(
        states,
        y="pool",
        height=0.6,
        source=source,
        fill_color=list(_STATE_COLORS.values()),
        line_color=None,
        legend_label=states,
    )
    plot.hover.tooltips = [("", "@pool: @$name $name")]
    plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    plot.add_layout(plot.legend[0], "below")
    plot.legend.ncols = 4
    plot.legend.label_text_font_size = "10px"
    plot.legend.spacing = 0
    plot.legend.glyph_width = plot.legend.glyph_height = 12
    plot.legend.border_line_color = None
    return plot


def _kv_figure(source: ColumnDataSource) -> Any:
    plot = figure(title="KV cache in use", y_range=FactorRange(), x_range=Range1d(0, 1), tools="", **_frame())
    plot.hbar(y="worker", right="kv_usage", height=0.6, source=source, color=_COLORS[0])
    plot.xaxis.formatter = NumeralTickFormatter(format="0 %")
    return plot


def _timeline(
    title: str, unit: str, series: Sequence[tuple[str, str]], points: ColumnDataSource, x_range: Any | None
) -> Any:
    shared = {} if x_range is None else {"x_range": x_range}
    plot = figure(title=title, x_axis_type="datetime", tools="xpan,xwheel_zoom,hover", **_frame(), **shared)
    for (field, name), color in zip(series, _COLORS, strict=False):
        plot.line("at", field, source=points, line_width=2, color=color, legend_label=name)
    plot.hover.tooltips = [("", "@at{%T}"), *((name, f"@{field}{{0,0.[00]}}") for field, name in series)]
    plot.hover.formatters = {"@at": "datetime"}
    plot.hover.mode = "vline"
    plot.y_range.start = 0
    plot.yaxis.axis_label = unit
    plot.xaxis.formatter = DatetimeTickFormatter(seconds="%T", minsec="%T", minutes="%H:%M", hourmin="%H:%M")
    plot.xaxis.ticker.desired_num_ticks = 4
    plot.add_layout(plot.legend[0], "above")
    plot.legend.orientation = "horizontal"
    plot.legend.location = "left"
    plot.legend.label_text_font_size = "11px"
    plot.legend.border_line_color = None
    plot.legend.padding = plot.legend.margin = 0
    return plot


def _frame() -> dict[str, Any]:
    return {"height": _HEIGHT, "sizing_mode": "stretch_width", "toolbar_location": None, "min_border_right": 12}


def _number(value: float | None) -> float:
    return nan if value is None else value
