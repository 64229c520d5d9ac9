"""`hpcserve simulate`: how a fleet of any size would have served a recorded trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import click

from hpcserve.cli.options import POLICIES

if TYPE_CHECKING:
    from hpcserve.config.models import Config
    from hpcserve.simulate import Scenario, TraceRequest

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)
_COUNT = click.IntRange(1)
_POSITIVE = click.FloatRange(0, min_open=True)
_SIZES = {  # of a worker, where neither an option nor the timing file says
    "kv_blocks": 16384,
    "block_size": 64,
    "max_num_seqs": 256,
    "max_batched_tokens": 8192,
    "kv_bytes_per_token": 131072,
}


class _Given(TypedDict):
    """The options, by name."""

    trace: Path | None
    requests: int | None
    workers: int | None
    prefill: int | None
    decode: int | None
    policy: str | None
    config: Path | None
    assignments: tuple[str, ...]
    speed: float
    kv_blocks: int | None
    block_size: int | None
    max_num_seqs: int | None
    max_batched_tokens: int | None
    timing: Path | None
    kv_bandwidth: float
    kv_bytes_per_token: int | None
    event_delay_ms: float
    slo_ttft_ms: float | None
    slo_itl_ms: float | None
    sweep: bool
    attainment: float
    workers_per_node: int
    planner: bool
    start_s: float
    queue_s: float
    plot: Path | None
    as_json: bool


def _option(flags: str, text: str, **settings: Any) -> Callable[[_Command], _Command]:
    """Return an option; its default is shown if it has one."""
    return click.option(*flags.split(","), help=text, show_default=settings.get("default") is not None, **settings)


def _size(flag: str, text: str, default: int) -> Callable[[_Command], _Command]:
    """Return an option whose default a timing file may replace."""
    return _option(flag, f"{text}  [default: that of --timing, or {default}]", type=_COUNT, metavar="N")


@click.command("simulate")
@_option("--trace", "Mooncake JSONL, plain or gzipped; or $HPCSERVE_TRACE.", type=_FILE, envvar="HPCSERVE_TRACE")
@_option("--requests", "Only the first N of the trace.", type=_COUNT, metavar="N")
@_option("--workers", "Workers that prefill and decode; with --sweep the most to try.", type=_COUNT, metavar="N")
@_option("--prefill", "Prefill workers; with --decode.", type=_COUNT, metavar="P")
@_option("--decode", "Decode workers; with --prefill.", type=_COUNT, metavar="D")
@_option("--policy", "How workers are chosen.  [default: kv]", type=click.Choice(POLICIES))
@_option("--config", "YAML file whose section `router` to use.", type=_FILE, metavar="FILE")
@_option("--set,assignments", "A key of the router, such as router.seed=7.", multiple=True, metavar="KEY=VALUE")
@_option("--speed", "Arrivals come so many times faster.", type=_POSITIVE, default=1.0)
@_size("--kv-blocks", "KV blocks of a worker.", _SIZES["kv_blocks"])
@_size("--block-size", "Tokens in a KV block; divides 512.", _SIZES["block_size"])
@_size("--max-num-seqs", "Sequences in a step of a worker.", _SIZES["max_num_seqs"])
@_size("--max-batched-tokens", "Tokens in a step of a worker.", _SIZES["max_batched_tokens"])
@_option("--timing", "What `hpcserve bench` wrote.  [default: the published polynomials]", type=_FILE, metavar="FILE")
@_option("--kv-bandwidth", "Between two workers, in GB/s.", type=_POSITIVE, default=50.0)
@_size("--kv-bytes-per-token", "Size of one token's KV.", _SIZES["kv_bytes_per_token"])
@_option("--event-delay-ms", "From an engine's step to the router's index.", type=click.FloatRange(0), default=0.0)
@_option("--slo-ttft-ms", "Time to first token that is good enough.", type=_POSITIVE)
@_option("--slo-itl-ms", "Mean time between a request's tokens that is good enough.", type=_POSITIVE)
@_option("--sweep", "Try sizes and splits up to --workers; say the smallest that meets the SLO.", is_flag=True)
@_option("--attainment", "Share of requests that must meet it.", type=click.FloatRange(0, 1), default=0.9)
@_option("--workers-per-node", "For node-hours.", type=_COUNT, default=1)
@_option("--planner", "The planner changes roles and sizes; --set planner.max_workers=8 and so on.", is_flag=True)
@_option("--start-s", "With --planner: from a job's start to a READY worker.", type=click.FloatRange(0), default=60.0)
@_option("--queue-s", "With --planner: that a job waits in the queue.", type=click.FloatRange(0), default=0.0)
@_option("--plot", "Draw latencies, load and caches into a PNG file.", type=_FILE, metavar="FILE")
@_option("--json,as_json", "Print JSON.", is_flag=True)
def command(**given: Unpack[_Given]) -> None:
    """Replay a trace in virtual time: latencies, cache hits, worker-hours.

    Router and scheduler are those that serve online; only the clock is not real, and computing takes the time that the
    timing model says. The same trace and options give the same numbers on any machine. With --planner the objectives
    are planner.ttft_ms and planner.itl_ms, unless others are given.
    """
    from hpcserve.simulate import load_trace

    if given["trace"] is None:
        raise click.UsageError("no trace: give --trace FILE, or set HPCSERVE_TRACE")
    trace = load_trace(given["trace"], given["requests"])
    if given["planner"]:
        _plan(trace, given)
    elif given["sweep"]:
        _sweep(trace, given)
    else:
        _replay(trace, given)


def _replay(trace: list[TraceRequest], given: _Given) -> None:
    from hpcserve.simulate import replay
    from hpcserve.simulate.timeline import Timeline

    plot = given["plot"]
    if plot is not None:
        from hpcserve.simulate.plot import check_plotting

        check_plotting()  # before the work, not after it
    timeline = Timeline() if plot else None
    report = replay(_scenario(given), trace, timeline)
    if plot is not None and timeline is not None:
        from hpcserve.simulate.plot import draw

        draw(timeline, plot)
    if given["as_json"]:
        _print_json(report)
    else:
        from hpcserve.simulate.table import print_report

        print_report(report, has_slo=given["slo_ttft_ms"] is not None or given["slo_itl_ms"] is not None)


def _plan(trace: list[TraceRequest], given: _Given) -> None:
    from hpcserve.simulate.planned import replay_planned

    if given["sweep"] or given["plot"]:
        raise click.UsageError("--planner does not go with --sweep or --plot")
    result = replay_planned(_scenario(given), trace)
    if given["as_json"]:
        _print_json(result)
    else:
        from hpcserve.simulate.table import print_planned

        print_planned(result)


def _sweep(trace: list[TraceRequest], given: _Given) -> None:
    from hpcserve.simulate.sweep import sweep

    if given["slo_ttft_ms"] is None and given["slo_itl_ms"] is None:
        raise click.UsageError("--sweep needs --slo-ttft-ms, --slo-itl-ms, or both")
    if given["workers"] is None or given["prefill"] or given["decode"] or given["plot"]:
        raise click.UsageError("--sweep takes --workers, the most to try, and no --prefill, --decode or --plot")
    result = sweep(_scenario(given), trace, given["attainment"], given["workers_per_node"])
    if given["as_json"]:
        _print_json(result)
    else:
        from hpcserve.simulate.table import print_sweep

        print_sweep(result)


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _scenario(given: _Given) -> Scenario:
    from hpcserve.engine.mock.scheduler import Limits
    from hpcserve.engine.mock.timing_file import TimingFile, read_timing
    from hpcserve.simulate import Scenario

    timing = read_timing(given["timing"]) if given["timing"] is not None else TimingFile()
    kv_bytes = given["kv_bytes_per_token"] or timing.kv_bytes_per_token or _SIZES["kv_bytes_per_token"]
    config = _config(given)
    planner = config.planner
    return Scenario(
        workers=_num_workers(given),
        prefill=given["prefill"] or 0,
        decode=given["decode"] or 0,
        router=config.router,
        planner=planner,
        start_s=given["start_s"],
        queue_s=given["queue_s"],
        limits=Limits(
            num_blocks=given["kv_blocks"] or timing.num_kv_blocks or _SIZES["kv_blocks"],
            block_size=given["block_size"] or timing.block_size or _SIZES["block_size"],
            max_num_seqs=given["max_num_seqs"] or timing.max_num_seqs or _SIZES["max_num_seqs"],
            max_batched_tokens=given["max_batched_tokens"] or timing.max_batched_tokens or _SIZES["max_batched_tokens"],
        ),
        timing=timing.model(kv_bytes, given["kv_bandwidth"] * 1e9),
        speed=given["speed"],
        event_delay_s=given["event_delay_ms"] / 1000,
        slo_ttft_ms=given["slo_ttft_ms"] or (planner.ttft_ms if given["planner"] else None),
        slo_itl_ms=given["slo_itl_ms"] or (planner.itl_ms if given["planner"] else None),
    )


def _num_workers(given: _Given) -> int:
    workers, prefill, decode = given["workers"], given["prefill"], given["decode"]
    if (prefill is None) != (decode is None):
        raise click.UsageError("--prefill and --decode come together")
    if workers is not None and prefill is not None:
        raise click.UsageError("--workers does not go with --prefill and --decode")
    return workers or 1


def _config(given: _Given) -> Config:
    """Return the sections that count; neither the environment nor a file that nobody named has a say in results."""
    from hpcserve.config import Setting, load

    sections = ("router.", "planner.") if given["planner"] else ("router.",)
    wrong = [text for text in given["assignments"] if not text.startswith(sections)]
    if wrong:
        more = " and of the planner" if given["planner"] else ""
        raise click.UsageError(f"--set {wrong[0]}: only keys of the router{more}, such as router.seed=7")
    flags = [Setting(("router", "policy"), given["policy"], "--policy")] if given["policy"] else []
    file = given["config"] or Path(os.devnull)
    return load(file=file, assignments=given["assignments"], flags=flags, environ={}, allow_contradictions=True).config
