"""One run of a plan: bring everything up, load, hurt, wait until it is well again, look, take everything down."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hpcserve.state import StateDir
from tests.chaos import batches, invariants
from tests.chaos.cases import Case, Expected, draw_cases, with_stop
from tests.chaos.clocks import make_clocks
from tests.chaos.daemons import SlurmDaemons, development_cluster
from tests.chaos.deployment import NAME, up_options
from tests.chaos.faults.fault import Fault
from tests.chaos.injector import Injector
from tests.chaos.load import Load
from tests.chaos.memory import Memory
from tests.chaos.plan import Plan
from tests.chaos.report import Report
from tests.chaos.world import World

_DISK_MB = 96
_LINES_A_SECOND = 1.0  # of a batch, for every second of load
_BATCH_MARGIN_S = 240.0  # after the load, for what is left of a batch
_ANSWERS_MARGIN_S = 320.0  # after the load, for what is under way


async def run_plan(plan: Plan, faults: dict[str, Fault], replay: str, keep: Path) -> Report:
    """Run it; the logs of the deployment and the report are left in `keep`."""
    report, began = Report(plan, replay, logs=str(keep)), time.monotonic()
    keep.mkdir(parents=True, exist_ok=True)
    (keep / "plan.json").write_text(json.dumps(plan.as_dict(), indent=2))
    root = Path(tempfile.mkdtemp(prefix="hs-"))
    try:
        with development_cluster(root / "dc") as daemons, _small_disk(root / "state") as disk:
            try:
                await _on(daemons, disk, root, plan, faults, report)
            finally:
                _keep_logs(root, keep)
    finally:
        report.took_s = time.monotonic() - began
        report.write(keep)
        shutil.rmtree(root, ignore_errors=True)
    return report


async def _on(
    daemons: SlurmDaemons, disk: Path | None, root: Path, plan: Plan, faults: dict[str, Fault], report: Report
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HPCSERVE_", "SLURM_"))}
    env |= {"HPCSERVE_STATE_DIR": str(root / "state"), "SLURM_CONF": str(daemons.conf), "OMP_NUM_THREADS": "1"}
    clocks = make_clocks(root) if "jump-clock" in faults else None
    if clocks is not None:
        env |= clocks.env
    world = World(StateDir(root / "state" / NAME), env, daemons, disk, clocks)
    try:
        code, out, err = await world.hpcserve("up", "--detach", "--json", *up_options(plan, root), timeout_s=300)
        if code:
            report.violations.append(f"`hpcserve up`: exit code {code}: {err.strip()}")
            return
        await _suffer(world, json.loads(out)["endpoint"], plan, faults, report)
    finally:
        report.violations += await _take_down(world)
        report.violations += invariants.quiet_logs(world.state.logs)


async def _suffer(world: World, endpoint: str, plan: Plan, faults: dict[str, Fault], report: Report) -> None:
    is_mock = plan.scenario.engine == "mock"
    cases = draw_cases(plan.seed, "mock" if is_mock else "tiny", is_mock=is_mock, longest=700 if is_mock else 250)
    load = Load(
        endpoint, world.state.read_key(), cases, plan.seed, plan.scenario.num_clients, world.excuses.allow
    )  # fmt: skip
    if not is_mock:
        load.cases = cases = await undisturbed(load, cases)
    report.outcomes = load.outcomes
    memory, injector = Memory(world), Injector(world, faults, report.happened)
    async with _beside(world, endpoint, plan, cases, report), _background(memory.watch()):
        async with _loading(load, report):
            await injector.run(plan)
            await injector.undo_all()
        report.violations += injector.complaints
    report.violations += [f"{each.case}: {each.complaint}" for each in load.outcomes if each.complaint]
    report.violations += [f"batch {each.kind}: {why}" for each in report.batches for why in each.complaints]
    report.violations += await invariants.recovered(world)
    report.violations += await invariants.idle(world)
    memory.look()
    report.memory_mb, report.head_back_s = memory.halves(), world.head_back_s
    report.violations += memory.complaints()
    report.ends = (await world.status() or {}).get("ends", {})


async def undisturbed(load: Load, cases: list[Case]) -> list[Case]:
    """Return the cases with the answers of a deployment that nothing happens to."""
    plain = [replace(case, body={k: v for k, v in case.body.items() if k != "stop"}) for case in cases]
    texts = [reply.texts[0] for reply in await load.once(plain)]
    cases = [
        with_stop(case, text) if "stop" in case.body else case for case, text in zip(cases, texts, strict=True)
    ]  # fmt: skip
    expected = [
        Expected(
            tuple(reply.texts[index] for index in sorted(reply.texts)), str(reply.finish_reasons[0]),
            reply.usage["prompt_tokens"], reply.usage["completion_tokens"],
        )
        for reply in await load.once(cases)
    ]  # fmt: skip
    return [replace(case, expected=each) for case, each in zip(cases, expected, strict=True)]


@asynccontextmanager
async def _loading(load: Load, report: Report) -> AsyncIterator[None]:
    """Load while inside; then everything that is under way has its bound to end in."""
    running = asyncio.create_task(load.run())
    try:
        yield
        load.stop()
        await asyncio.wait((running,), timeout=_ANSWERS_MARGIN_S)
        if not running.done():
            report.violations.append(f"{load.running} requests have no answer {_ANSWERS_MARGIN_S:.0f} s after the load")
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@asynccontextmanager
async def _beside(world: World, endpoint: str, plan: Plan, cases: list[Case], report: Report) -> AsyncIterator[None]:
    """Have the batches of the plan beside; afterwards they are waited for."""
    beside, deadline = plan.scenario.beside, time.monotonic() + plan.duration_s + _BATCH_MARGIN_S
    lines = batches.lines_of(cases, max(20, int(plan.duration_s * _LINES_A_SECOND)))
    source = world.state.path.parent / "in.jsonl"
    batches.write_input(source, lines)

    def is_over() -> bool:
        return time.monotonic() > deadline

    async with AsyncExitStack() as stack:
        tasks = []
        if beside in ("run", "both"):
            output = world.state.path.parent / "out.jsonl"
            over = ("dask", "http")[plan.seed % 2]
            tasks.append(batches.run_command(world, source, output, lines, is_over, over))
        if beside in ("uploaded", "both"):
            tasks.append(batches.hand_in(world, endpoint, source, lines, is_over))
        running = [await stack.enter_async_context(_background(task)) for task in tasks]
        yield
        report.batches += await asyncio.gather(*running)


@asynccontextmanager
async def _background(work) -> AsyncIterator[asyncio.Task]:  # type: ignore[no-untyped-def,type-arg]
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _take_down(world: World) -> list[str]:
    began = time.monotonic()
    code, _, err = await world.hpcserve("down", timeout_s=150)
    found = [f"`hpcserve down`: exit code {code}: {err.strip()}"] if code else []
    found += await invariants.nothing_left(world)
    if found:
        await world.hpcserve("down", "--force", timeout_s=60)
        found.append(f"({time.monotonic() - began:.0f} s for `down`)")
    return found


def _keep_logs(root: Path, keep: Path) -> None:
    for path, name in ((root / "state" / NAME / "logs", "logs"), (root / "dc" / "log", "slurm")):
        if path.is_dir():
            shutil.copytree(path, keep / name, dirs_exist_ok=True)
    for name in ("workers.jsonl", "config.json", "jobs.json"):
        with suppress(FileNotFoundError):
            shutil.copy(root / "state" / NAME / name, keep / name)


@contextmanager
def _small_disk(path: Path) -> Iterator[Path | None]:
    """A file system of its own for state, logs and ledgers, where it may be mounted: one that can be filled."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=0700", "none", str(path)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield path if is_mounted else None
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
