"""`hpcserve bench kv`: pulls KV between processes of this machine, or of all ranks of a launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from hpcserve.cli.streams import say

if TYPE_CHECKING:
    from hpcserve.bench.kv_pairs import KvPlan, KvReport

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_DEFAULT_SIZES = "64k,1m,8m,64m,256m"


@click.command("kv")
@click.option(
    "--transport",
    type=click.Choice(("nixl", "mpi", "courier")),
    default="nixl",
    show_default=True,
    help="What carries the bytes. courier: MPI in a process beside the engine's.",
)
@click.option(
    "--sizes", default=_DEFAULT_SIZES, show_default=True, metavar="LIST", help="Bytes of a pull: 4096, 64k, 8m."
)
@click.option("--block", metavar="SIZE", help="Cut pulls into blocks of this size, from here and there.")
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Pulls of each size."
)
@click.option(
    "--min-gb-per-s",
    type=click.FloatRange(0),
    default=0.0,
    metavar="X",
    help="Fail if a pair is slower at all sizes (10^9 bytes a second).",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds that a peer may be silent.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as JSON.")
def command(
    transport: str,
    sizes: str,
    block: str | None,
    repeats: int,
    min_gb_per_s: float,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Check that KV arrives intact between processes, and how fast.

    On its own: two processes of this machine. Started by mpirun or srun: all pairs of ranks, both directions. Fails if
    a pair corrupts or is too slow, and names its nodes and the interface.
    """
    from hpcserve.bench.kv_pairs import KvPlan

    plan = KvPlan(
        transport=transport,  # type: ignore[arg-type]  # one of the choices
        sizes=tuple(sorted({_bytes(word) for word in sizes.split(",")})),
        block=_bytes(block) if block else None,
        repeats=repeats,
        min_gb_per_s=min_gb_per_s,
    )
    _run(plan, timeout_s, as_json=as_json)


def _run(plan: KvPlan, timeout_s: float, *, as_json: bool) -> None:
    from hpcserve.bench.kv_pairs import measure_pairs
    from hpcserve.bench.kv_remote import children, ranks
    from hpcserve.cluster.launcher import read_launch

    launch = read_launch()
    if launch is not None and launch.num_ranks > 1:
        with ranks(plan.transport, timeout_s) as remotes:
            report = None if remotes is None else measure_pairs(plan, remotes, say)
        if report is not None:
            _show(report, as_json=as_json)
    elif plan.transport == "nixl":
        with children(plan.transport, timeout_s) as remotes:
            report = measure_pairs(plan, remotes, say)
        _show(report, as_json=as_json)
    else:
        _under_mpirun()


def _show(report: KvReport, *, as_json: bool) -> None:
    from hpcserve.errors import KVError

    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(report)))
    else:
        from hpcserve.bench.kv_table import print_report

        print_report(report)
    for warning in report.warnings:
        say(f"warning: {warning}")
    if refused := report.refused():
        raise KVError("\n".join(refused))


def _under_mpirun() -> None:
    """Run the same command as two ranks of this machine."""
    from hpcserve.cluster.mpirun import mpirun_command
    from hpcserve.errors import KVError

    if shutil.which("mpirun") is None:
        raise KVError("no mpirun on PATH: load your site's MPI module")
    code = subprocess.run([*mpirun_command(2), sys.executable, "-c", _MAIN, *sys.argv[1:]], check=False).returncode
    if code:
        sys.stdout.flush()
        os._exit(code)  # the ranks have said why


_MAIN = "from hpcserve.cli import main; main()"


def _bytes(word: str) -> int:
    word = word.strip().lower().removesuffix("ib").removesuffix("b")
    number, unit = (word[:-1], word[-1]) if word and word[-1] in "kmg" else (word, "")
    if not number.isdigit() or not int(number):
        raise click.BadParameter(f"{word!r} is no size in bytes; write 4096, 64k or 8m", param_hint="--sizes")
    return int(number) * _UNITS[unit]
