"""The small job with which the doctor looks at compute nodes: its script, its life, its end. Judges nothing."""

from __future__ import annotations

import asyncio
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from hpcserve.cluster import slurm_commands
from hpcserve.cluster.protocol import JobState, JobView
from hpcserve.cluster.slurm_script import as_pattern, gpu_directive, in_slurm_units, parse_memory_mb, setup_lines
from hpcserve.config.models import Config
from hpcserve.doctor.host import HostReport, ProbeOrder
from hpcserve.doctor.rendezvous import Rendezvous, Visit
from hpcserve.doctor.software_checks import needs_libraries
from hpcserve.errors import ClusterError

_WALLTIME_MIN = 5  # imports from a busy file system take minutes
_MAX_MEMORY_MB = 8192
_POLL_S = 1.0
_LAST_WORDS_S = 5.0  # for what a job wrote to be seen here, after its end
_END_TIMEOUT_S = 60.0
_NOT_FOR_PROBES = ("--exclusive", "--mail", "--requeue", "--nodes", "--ntasks")


@dataclass(kw_only=True)
class ProbeResult:
    """What came of a probe job."""

    visits: list[Visit] = field(default_factory=list)
    job_id: str = ""
    error: str = ""  # why nodes are missing; empty: none is
    log: str = ""  # the end of what it wrote
    waited_s: float | None = None  # in the queue


async def probe_nodes(
    config: Config,
    here: HostReport,
    root: Path,
    num_nodes: int,
    *,
    with_gpu: bool,
    timeout_s: float,
    on_progress: Callable[[str], None] = lambda _: None,
) -> ProbeResult:
    """Submit the job, wait for it, and leave nothing behind. Cancelling it cancels the job.

    `timeout_s` bounds the wait in the queue. Raises `ClusterError` where Slurm would not take the job, and `OSError`
    where `root` cannot be written.
    """
    directory = root / f".doctor-{secrets.token_hex(4)}"
    directory.mkdir(mode=0o700, parents=True)
    meeting = Rendezvous(directory, num_nodes)
    try:
        port = await _listen(meeting, here.address)
        order = _order(config, here, root, meeting.token, port)
        path = directory / "order"
        path.touch(mode=0o600)
        path.write_bytes(msgspec.json.encode(order))
        script = render_probe(config, directory, num_nodes, with_gpu=with_gpu)
        job_id = await _submit(script)
        try:
            return await _attend(meeting, job_id, directory, timeout_s, on_progress)
        finally:
            await asyncio.shield(_end(job_id))
    finally:
        await meeting.close()
        shutil.rmtree(directory, ignore_errors=True)


def render_probe(config: Config, directory: Path, num_nodes: int, *, with_gpu: bool) -> str:
    """Return the job script: the setup of a worker's job, and the probe in the place of the agent."""
    slurm = config.cluster.slurm
    memory_mb = min(parse_memory_mb(slurm.memory), _MAX_MEMORY_MB) if slurm.memory else None
    lines = [
        "--job-name=doctor.hpcserve",
        f'--output="{as_pattern(directory / "log")}"',
        f"--nodes={num_nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={min(2, slurm.cores)}",
        f"--time={_WALLTIME_MIN}",
        "--no-requeue",
        f"--mem={in_slurm_units(memory_mb)}" if memory_mb else None,
        gpu_directive(slurm.model_copy(update={"gpus": 1})) if with_gpu else None,
        f"--partition={slurm.partition}" if slurm.partition else None,
        f"--account={slurm.account}" if slurm.account else None,
        f"--qos={slurm.qos}" if slurm.qos else None,
        f'--constraint="{slurm.constraint}"' if slurm.constraint else None,
    ]
    kept = [line for line in lines if line and not any(skip in f"#SBATCH {line}" for skip in slurm.skip_directives)]
    own = [line.removeprefix("#SBATCH").strip() for line in slurm.extra_directives]
    kept += [line for line in own if not line.startswith(_NOT_FOR_PROBES)]
    run = shlex.join([slurm.python or sys.executable, "-m", "hpcserve.doctor.probe", str(directory / "order")])
    start = "exec" if num_nodes == 1 else f"exec srun --ntasks={num_nodes} --ntasks-per-node=1"
    return "\n".join(
        ["#!/usr/bin/env bash", *(f"#SBATCH {line}" for line in kept), "", *setup_lines(slurm), f"{start} {run}", ""]
    )


async def _listen(meeting: Rendezvous, address: str) -> int:
    """Return the port; 0 where there is no address to listen on, which another check says."""
    try:
        return await meeting.open(address) if address else 0
    except OSError:
        return 0


def _order(config: Config, here: HostReport, root: Path, token: str, port: int) -> ProbeOrder:
    model, scratch = config.model.path, config.cluster.scratch
    return ProbeOrder(
        host=here.address,
        port=port,
        token=token,
        state_root=str(root),
        interface=config.cluster.interface,
        scratch=str(scratch) if scratch else None,
        model=str(model) if model else None,
        with_libraries=needs_libraries(config),
    )


async def _submit(script: str) -> str:
    """Return the job's id. A submission that is cancelled is finished, and its job ended."""
    submission = asyncio.create_task(slurm_commands.run_slurm("sbatch", "--parsable", stdin=script))
    try:
        out, _ = await asyncio.shield(submission)
    except asyncio.CancelledError:
        out, _ = await submission
        await _end(_id(out))
        raise
    return _id(out)


def _id(said: str) -> str:
    return said.strip().partition(";")[0]


async def _attend(
    meeting: Rendezvous, job_id: str, directory: Path, timeout_s: float, on_progress: Callable[[str], None]
) -> ProbeResult:
    """Return what the nodes said until the job ended, or did not start in time."""
    result, has_ended = ProbeResult(job_id=job_id), asyncio.Event()
    watching = asyncio.create_task(_watch(result, has_ended, timeout_s, on_progress))
    try:
        result.visits = await meeting.wait(has_ended)
        if has_ended.is_set() and not result.error:
            await asyncio.sleep(0)
        result.log = _tail(directory / "log")
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    return result


async def _watch(
    result: ProbeResult, has_ended: asyncio.Event, timeout_s: float, on_progress: Callable[[str], None]
) -> None:
    """Follow the job in the queue; note why it is over."""
    began, last = time.monotonic(), ""
    while True:
        view = await _look(result.job_id)
        waited_s = time.monotonic() - began
        if view is not None and view.state is JobState.RUNNING and result.waited_s is None:
            result.waited_s = waited_s
        if view is not None and view.state is JobState.GONE:
            await asyncio.sleep(_LAST_WORDS_S)
            result.error = await _how_it_ended(view)
            has_ended.set()
            return
        if view is not None and view.state is JobState.PENDING and waited_s > timeout_s:
            result.error = f"it did not start within {timeout_s:g} s: {view.reason or 'no reason given'}"
            has_ended.set()
            return
        said = "" if view is None else f"job {result.job_id}: {view.state}{f' ({view.reason})' if view.reason else ''}"
        if said and said != last:
            on_progress(said)
            last = said
        await asyncio.sleep(_POLL_S)


async def _look(job_id: str) -> JobView | None:
    """Return the job; None where Slurm does not say."""
    try:
        entry = (await slurm_commands.list_jobs()).get(job_id)
    except ClusterError:
        return None
    return entry.view if entry is not None else None


async def _how_it_ended(view: JobView) -> str:
    with suppress(ClusterError):
        ends = await slurm_commands.find_ends([view.job_id])
        if view.job_id in ends:
            end = ends[view.job_id]
            return f"it ended without an answer: {end.detail}" + (f" on {end.node}" if end.node else "")
    return f"it ended without an answer: {view.reason}"


async def _end(job_id: str) -> None:
    """Cancel the job and return when it is gone from the queue."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    with suppress(ClusterError):
        await slurm_commands.cancel_jobs([job_id])
    while time.monotonic() < deadline:
        with suppress(ClusterError):
            entry = (await slurm_commands.list_jobs()).get(job_id)
            if entry is None or not entry.is_queued:
                return
        await asyncio.sleep(_POLL_S / 4)


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return " | ".join(line.strip() for line in lines[-3:])[-400:]
