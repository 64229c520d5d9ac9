"""Puts a deployment's receipt together: lives that are over, workers that live, tenants' counts, the site's books."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from hpcserve.cluster.slurm_accounting import AccountedJob, find_accounted, find_gpus
from hpcserve.config.models import Config
from hpcserve.receipt import Accounting, Receipt, ReceiptFile, Stay, add_up, stay_of, with_likely_gpus
from hpcserve.records import JobRecord
from hpcserve.serve.watch import fetch_status
from hpcserve.state import StateDir
from hpcserve.types import Phase, Status
from hpcserve.worker_log import WorkerLog

_TOLERANCE_S = 30.0  # between our clocks and the accounting's
_TOLERANCE = 0.02


async def make_receipt(state: StateDir, seen: Status | None = None) -> Receipt:
    """Return what this life of a deployment has used so far, and keep it if it is over.

    `seen` is the newest status with loads and traffic, where the deployment has been watched. Raises `DeploymentError`
    if nothing was ever started.
    """
    config = state.read_config()
    status = await fetch_status(state)
    is_final = status.phase in (Phase.STOPPED, Phase.FAILED) and not state.read_jobs()
    seen = status if seen is None or status.load else seen
    began_at, now = state.began_at() or 0.0, time.time()
    lives = [life for life in WorkerLog(state).read() if life.submitted_at >= began_at]
    stays = [stay for stay in map(stay_of, lives) if stay is not None]
    over = {life.job_id for life in lives}
    stays += [_living(job, config, seen, now) for job in state.read_jobs() if job.job_id not in over and job.started_at]
    stays = await _with_gpus(stays, config)
    receipt = add_up(
        state.name,
        stays,
        began_at=began_at,
        until=max((life.ended_at for life in lives), default=now) if is_final else now,
        whole_nodes=config.cluster.slurm.exclusive and config.cluster.kind == "slurm",
        num_requests=_num_requests(state, seen),
        ends=dict(Counter(life.cause for life in lives)),
        is_final=is_final,
    )
    if config.cluster.kind == "slurm":
        receipt = _reconciled(receipt, stays, await find_accounted(state.name, began_at))
    if is_final:
        ReceiptFile(state).write(receipt)
    return receipt


def _living(job: JobRecord, config: Config, seen: Status, now: float) -> Stay:
    load = seen.load.get(job.worker)
    return Stay(
        worker=job.worker,
        job_id=job.job_id,
        started_at=job.started_at or now,
        ready_at=job.ready_at,
        ended_at=now,
        num_gpus=config.cluster.slurm.requested_gpus if job.cluster == "slurm" else 0,
        busy_s=load.work.prefill_s + load.work.decode_s if load else 0.0,
        prompt_tokens=load.prompt_tokens_total if load else 0,
        generated_tokens=load.generated_tokens_total if load else 0,
    )


async def _with_gpus(stays: list[Stay], config: Config) -> list[Stay]:
    """Ask Slurm how many GPUs came with whole nodes, where nobody has written it down."""
    slurm = config.cluster.slurm
    unknown = [stay.job_id for stay in stays if not stay.num_gpus]
    if config.cluster.kind != "slurm" or slurm.gpu_request == "none" or not slurm.exclusive or not unknown:
        return stays
    told = await find_gpus(unknown)
    stays = [msgspec.structs.replace(stay, num_gpus=stay.num_gpus or told.get(stay.job_id, 0)) for stay in stays]
    return with_likely_gpus(stays, 0)


def _num_requests(state: StateDir, seen: Status) -> int | None:
    """Return those that were counted by key; where no key is asked for, those that frontends have told the head of."""
    counted = ReceiptFile(state).num_requests()
    return counted if counted is not None or seen.traffic is None else seen.traffic.finished


def _reconciled(receipt: Receipt, stays: Sequence[Stay], booked: list[AccountedJob] | None) -> Receipt:
    """Put the accounting's sum beside ours, and name what differs."""
    if booked is None:
        return receipt
    by_job = {job.job_id: job for job in booked if job.worker != "head"}
    counts_gpus = any(job.num_gpus is not None for job in by_job.values())
    in_gpus = receipt.unit == "GPU-hours"
    hours = sum(job.elapsed_s * (job.num_gpus or 0 if in_gpus and counts_gpus else 1) for job in by_job.values()) / 3600
    differences = [line for stay in stays for line in _differences(stay, by_job.get(stay.job_id), in_gpus=in_gpus)]
    ours = {stay.job_id for stay in stays}
    differences += [
        f"job {job.job_id} ({job.worker}) ran {job.elapsed_s / 60:.1f} min and is not in our log"
        for job in by_job.values()
        if job.job_id not in ours
    ]
    if in_gpus and not counts_gpus and by_job:
        differences.append("the accounting counts no GPUs here: its hours are those of jobs")
    books = Accounting(hours=hours, num_jobs=len(by_job), differences=tuple(differences))
    return msgspec.structs.replace(receipt, accounting=books)


def _differences(stay: Stay, job: AccountedJob | None, *, in_gpus: bool) -> list[str]:
    if job is None:
        return [f"{stay.worker}: job {stay.job_id} is not in the accounting (yet)"]
    found = []
    if abs(job.elapsed_s - stay.seconds) > max(_TOLERANCE_S, stay.seconds * _TOLERANCE):
        found.append(f"{stay.worker}: {job.elapsed_s / 60:.1f} min there, {stay.seconds / 60:.1f} min here")
    if in_gpus and job.num_gpus is not None and job.num_gpus != stay.num_gpus:
        found.append(f"{stay.worker}: {job.num_gpus} GPUs there, {stay.num_gpus} here")
    return found
