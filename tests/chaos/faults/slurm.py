"""What Slurm does to jobs, and what happens to Slurm."""

from __future__ import annotations

import signal

from tests.chaos.faults.fault import Fault, Inflicted, NoTarget, pick
from tests.chaos.world import World

_NODES = [f"gpu{number}" for number in range(1, 9)]


async def _cancel_job(world: World, target: float) -> Inflicted:
    job = pick(world.jobs(), target)
    await world.slurm("scancel", job.job_id)
    return Inflicted(f"scancel of {job.worker} (job {job.job_id})")


async def _preempt(world: World, target: float) -> Inflicted:
    """Have a job of higher priority want the node of a worker."""
    agent = pick([each for each in world.agents() if each.node], target)
    said = await world.slurm(
        "sbatch", "--parsable", "--partition=urgent", f"--nodelist={agent.node}", "--exclusive", "--time=2",
        "--job-name=urgent", "--output=/dev/null", "--wrap=sleep 60",
    )  # fmt: skip
    if not said:
        raise NoTarget
    job_id = said.strip()

    async def give_way() -> str:
        state = (await world.slurm("squeue", "--noheader", "--format=%T", f"--jobs={job_id}")).strip()
        await world.slurm("scancel", job_id)
        return f"job {job_id} was {state or 'gone'}"

    return Inflicted(f"job {job_id} of higher priority for {agent.node}, where {agent.worker} is", give_way)


async def _kill_controller(world: World, target: float) -> Inflicted:
    return _kill(world, "slurmctld")


async def _stop_controller(world: World, target: float) -> Inflicted:
    return _stop(world, "slurmctld")


async def _kill_node_daemon(world: World, target: float) -> Inflicted:
    return _kill(world, _node_of_a_worker(world, target))


async def _stop_node_daemon(world: World, target: float) -> Inflicted:
    return _stop(world, _node_of_a_worker(world, target))


def _node_of_a_worker(world: World, target: float) -> str:
    return pick([each.node for each in world.agents() if each.node in _NODES] or _NODES, target) or "gpu1"


def _kill(world: World, daemon: str) -> Inflicted:
    world.daemons.signal(daemon, signal.SIGKILL)

    async def start() -> str:
        world.daemons.start(daemon)
        return "started"

    return Inflicted(f"SIGKILL to {_name(daemon)}", start)


def _stop(world: World, daemon: str) -> Inflicted:
    world.daemons.signal(daemon, signal.SIGSTOP)

    async def go_on() -> str:
        world.daemons.signal(daemon, signal.SIGCONT)
        return "SIGCONT"

    return Inflicted(f"SIGSTOP to {_name(daemon)}", go_on)


def _name(daemon: str) -> str:
    return daemon if daemon == "slurmctld" else f"the slurmd of {daemon}"


FAULTS = (
    Fault("cancel-job", 3, _cancel_job),
    Fault("preempt", 1, _preempt, hold_s=(20.0, 50.0)),
    Fault("kill-slurmctld", 1, _kill_controller, hold_s=(1.0, 15.0)),
    Fault("stop-slurmctld", 1, _stop_controller, hold_s=(1.0, 20.0)),
    Fault("kill-slurmd", 1, _kill_node_daemon, hold_s=(1.0, 10.0)),
    Fault("stop-slurmd", 1, _stop_node_daemon, hold_s=(1.0, 15.0)),
)
