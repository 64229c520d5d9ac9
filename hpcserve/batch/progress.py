"""How far a run is: a bar where there is a terminal, else a line every half minute. Only shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from hpcserve.batch.tally import Tally

_REDRAW_S = 0.25
LINE_S = 30.0


async def show(tally: Tally, console: Console, say: Callable[[str], None], every_s: float = LINE_S) -> None:
    """Show `tally` until cancelled; `say` prints a line where `console` is no terminal."""
    if console.is_terminal:
        await _draw(tally, console)
    while True:
        await asyncio.sleep(every_s)
        say(line(tally))


async def _draw(tally: Tally, console: Console) -> None:
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=tally.num_requests)
        while True:
            progress.update(task, completed=tally.num_finished, description=line(tally))
            progress.refresh()
            await asyncio.sleep(_REDRAW_S)


def line(tally: Tally) -> str:
    """Return how far it is, in one line."""
    done, prompt, output = tally.rates()
    parts = [
        f"{tally.num_finished:,} of {tally.num_requests:,}",
        f"{done:,.1f}/s",
        f"{prompt:,.0f} prompt and {output:,.0f} output tokens/s",
        f"{hit_rate(tally):.0%} prefix hits",
    ]
    parts += [f"{tally.num_failed:,} failed"] if tally.num_failed else []
    parts += [f"{tally.num_retries:,} retries"] if tally.num_retries else []
    eta_s = tally.eta_s()
    parts += [f"{duration(eta_s)} left"] if eta_s is not None else []
    return ", ".join(parts)


def hit_rate(tally: Tally) -> float:
    """Return the share of prompt tokens that were in a prefix cache, 0 to 1."""
    return tally.cached_tokens / tally.prompt_tokens if tally.prompt_tokens else 0.0


def duration(seconds: float) -> str:
    """Return seconds as people say them, such as `42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def summary_lines(tally: Tally, gpu_s: float | None) -> list[str]:
    """Return what a run came to; see `Tally.summary`."""
    told = tally.summary(gpu_s)
    before = f" ({tally.num_before:,} of them before)" if tally.num_before else ""
    hits = f"{hit_rate(tally):.0%} prefix hits"
    lines = [
        f"{tally.num_finished:,} of {tally.num_requests:,} requests finished{before}, {tally.num_failed:,} failed",
        f"{tally.prompt_tokens:,} prompt tokens ({hits}), {tally.output_tokens:,} output tokens",
        f"{duration(tally.elapsed_s)}: {told['requests_per_s']:,.1f} requests/s, "
        f"{told['prompt_tokens_per_s']:,.0f} prompt and {told['output_tokens_per_s']:,.0f} output tokens/s",
    ]
    if gpu_s:
        lines.append(f"{told['gpu_hours']:,.2f} GPU-hours")
    return lines
