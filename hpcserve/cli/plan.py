"""`hpcserve plan`: what the planner sees, what it would do now, and what it has decided."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import click

from hpcserve.cli.backend import backend
from hpcserve.cli.columns import print_columns
from hpcserve.cli.deployment import find, name_option

if TYPE_CHECKING:
    from hpcserve.planner import Observation, Plan, PlanLine, PlanReport


@click.command("plan")
@name_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Show what the planner sees, what it would do now, and its last decisions.

    Without planner.enabled nothing is done about them: it is a preview.
    """
    report = asyncio.run(backend(ctx).fetch_plan(find(name)))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(report).decode())
        return
    click.echo(f"the planner is {'on' if report.is_enabled else 'off: this is a preview (planner.enabled)'}")
    if report.observation is None or report.plan is None:
        click.echo("it has not looked yet: the first interval is not over")
        return
    _print_sight(report.observation)
    _print_need(report.plan)
    _print_lines(report)


def _print_sight(seen: Observation) -> None:
    rows = [("worker", "role", "state", "requests", "prompts", "kv")]
    rows += [
        (
            each.worker,
            str(each.role),
            each.state,
            str(each.num_requests),
            f"{each.queued_ms / 1000:.1f} s",
            f"{each.kv_usage:.0%}",
        )
        for each in seen.workers
    ]
    click.echo("")
    print_columns(rows)
    wanted = " + ".join(f"{size} {pool}" for pool, size in seen.sizes.items())
    wait = "" if not seen.wait_s else f"; one takes {seen.wait_s:.0f} s to come"
    room = ", for room on a decode worker" if seen.wants_room else ""
    click.echo(
        f"\nwanted: {wanted}{wait}\n"
        f"waiting: {seen.num_waiting} requests, {seen.waiting_ms / 1000:.1f} s of prompts{room}\n"
        f"in the last {seen.interval_s:.1f} s: {seen.num_arrived} requests, {seen.arrived_ms / 1000:.1f} s of prompts; "
        f"TTFT p90 {_ms(seen.ttft_p90_ms)}, ITL p90 {_ms(seen.itl_p90_ms)}"
    )


def _print_need(plan: Plan) -> None:
    need = plan.need
    click.echo(
        f"needed: {need.total} workers; {need.prefill} for prompts (they keep {need.offered:.1f} computing), "
        f"{need.decode} for decoding (it fills {need.kv:.1f} caches)"
    )
    wishes = [*(each.text for each in plan.decisions), *plan.wishes]
    click.echo("now: " + ("\n     ".join(wishes) if wishes else "it stays as it is"))


def _print_lines(report: PlanReport) -> None:
    if report.lines:
        click.echo("\ndecisions:" if report.is_enabled else "\ndecisions that it would have made:")
    for line in report.lines:
        click.echo(f"{_clock(line)}  {line.text}")


def _clock(line: PlanLine) -> str:
    return time.strftime("%H:%M:%S", time.localtime(line.at))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
