"""The script of an offline batch: what is written into it, and what its shell does when the driver ends so or so."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpcserve.cluster.batch_script import EXAMPLE, render, share_gpus
from hpcserve.config.models import SlurmConfig
from hpcserve.errors import ConfigError

TEMPLATE = Path(__file__).parents[2] / "slurm" / "offline_batch.sbatch"


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_copy_that_users_take_is_what_is_rendered() -> None:
    assert TEMPLATE.read_text() == render(EXAMPLE)


def test_every_script_goes_on_after_its_walltime() -> None:
    found = directives(render(EXAMPLE))
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(found)
    assert "REQUEUE=0" in render(replace(EXAMPLE, requeue=False))
    assert "--no-requeue" in directives(render(replace(EXAMPLE, requeue=False)))


@pytest.mark.parametrize(
    ("walltime", "warning_s"),
    [
        ("02:00:00", 120),
        ("10", 120),
        ("4", 60),
        ("2:30", 37),
        ("1-0", 120),
        ("0-0:4", 60),
        ("00:01:00", 15),
        (None, 120),
    ],
)
def test_a_short_walltime_leaves_time_to_work_before_the_warning(walltime: str | None, warning_s: int) -> None:
    script = render(replace(EXAMPLE, slurm=SlurmConfig(walltime=walltime)))
    assert f"--signal=B:USR1@{warning_s}" in directives(script)


def test_what_the_site_wants_is_asked_for() -> None:
    slurm = SlurmConfig(
        partition="gpu", account="proj1", qos="long", constraint="a100", walltime="1-0", exclusive=True, memory="64GB",
        gpu_request="gpus-per-node", gpu_type="a100", extra_directives=["#SBATCH --mail-type=END"],
        modules=["cuda/12"], prologue=["export X=1"],
    )  # fmt: skip
    script = render(replace(EXAMPLE, slurm=slurm, workers_per_node=2, gpus_per_node=4))
    found = directives(script)
    assert found[1:-2] == [
        "--nodes=4", "--ntasks-per-node=2", "--exclusive", "--mem=128G", "--gpus-per-node=a100:4", "--time=1-0",
        "--partition=gpu", "--account=proj1", "--qos=long", '--constraint="a100"',
        '--output="answers.slurm-%j.log"', "--open-mode=append", "--signal=B:USR1@120",
    ]  # fmt: skip
    assert found[-1] == "--mail-type=END"
    assert "module load cuda/12 || exit 1" in script
    assert "export X=1\n" in script


def test_shared_nodes_are_asked_for_by_cores_and_lines_can_be_left_out() -> None:
    slurm = SlurmConfig(cores=6, skip_directives=["--gres"])
    found = directives(render(replace(EXAMPLE, slurm=slurm)))
    assert "--cpus-per-task=6" in found
    assert "--exclusive" not in found
    assert not [line for line in found if "gres" in line]


def test_an_array_has_a_log_for_each_task() -> None:
    found = directives(render(replace(EXAMPLE, num_tasks=8)))
    assert "--array=0-7" in found
    assert '--output="answers.slurm-%A_%a.log"' in found


def test_words_of_users_stay_words() -> None:
    script = render(replace(EXAMPLE, input="my file.jsonl", options=("--system", "don't $HOME", "@INPUT@")))
    shell = subprocess.run(
        ["bash", "-c", script.partition("# --- nothing")[0] + '\nprintf "%s|" "$INPUT" "${OPTIONS[@]}"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shell.stdout == "my file.jsonl|--system|don't $HOME|@INPUT@|"


@pytest.mark.parametrize(
    ("gpus", "tensor_parallel", "per_node", "workers", "found"),
    [
        (None, None, None, None, (1, 1)),
        (None, None, 4, None, (4, 4)),
        (2, None, 4, None, (2, 4)),
        (None, 4, 8, None, (2, 8)),
        (None, 2, None, 2, (2, 4)),
        (None, None, 4, 2, (2, 4)),
        (0, None, None, 3, (3, 0)),
    ],
)
def test_gpus_of_a_node_make_workers(
    gpus: int | None, tensor_parallel: int | None, per_node: int | None, workers: int | None, found: tuple[int, int]
) -> None:
    slurm = SlurmConfig(gpus=gpus)
    assert share_gpus(slurm, tensor_parallel, gpus_per_node=per_node, workers_per_node=workers) == found


def test_workers_that_do_not_fit_on_the_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="--gpus-per-node 4 is too few for 3 workers of 2 GPUs each"):
        share_gpus(SlurmConfig(gpus=2), None, gpus_per_node=4, workers_per_node=3)
    with pytest.raises(ConfigError, match="too few for 1 worker of 8 GPUs each"):
        share_gpus(SlurmConfig(), 8, gpus_per_node=4, workers_per_node=None)


def test_where_gpus_are_not_asked_for_there_are_none() -> None:
    assert share_gpus(SlurmConfig(gpu_request="none"), 4, gpus_per_node=None, workers_per_node=2) == (2, 0)


class Job:
    """The script under bash, with a launcher that runs its command once, and a driver that does as it is told.

    A line of `plan` a run: how many answers it writes, then its exit code, or "wait": until it is told to stop.
    """

    def __init__(self, directory: Path, *plan: str, **settings: str) -> None:
        self.directory = directory
        (directory / "plan").write_text("".join(f"{line}\n" for line in plan))
        tools = directory / "bin"
        tools.mkdir()
        launcher = 'while [[ $1 == -* || $1 == [0-9]* || $1 == none ]]; do shift; done; exec "$@"'
        self._tool(tools / "srun", f'echo "srun $*" >> calls\n{launcher}')
        self._tool(tools / "mpirun", f'echo "mpirun $*" >> calls\n{launcher}')
        self._tool(tools / "scontrol", 'if [[ $1 == show ]]; then cat shown; else echo "scontrol $*" >> calls; fi')
        (directory / "shown").write_text("PreemptEligibleTime=2026-11-23T02:14:49 PreemptTime=None\n")
        driver = """\
read -r num code < <(head -n 1 plan); sed -i 1d plan
while [[ $1 != -o ]]; do shift; done
trap 'touch stopped; exit 75' USR1
trap 'touch stopped; exit 130' TERM
for ((i = 0; i < num; i++)); do echo '{}' >> "$2"; done
touch running
if [[ $code == wait ]]; then while :; do sleep 0.05; done; fi
exit "$code"
"""
        self._tool(tools / "hpcserve", driver)
        self.env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"} | settings
        self.env.setdefault("SLURM_JOB_NUM_NODES", "2")

    @staticmethod
    def _tool(path: Path, script: str) -> None:
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)

    def start(self, script: str = "") -> subprocess.Popen[str]:
        self._tool(self.directory / "job", script or render(replace(EXAMPLE, slurm=SlurmConfig())))
        return subprocess.Popen(
            [self.directory / "job"], cwd=self.directory, env=self.env, stderr=subprocess.PIPE, text=True
        )

    def run(self, script: str = "") -> tuple[int, str]:
        with self.start(script) as process:
            _, said = process.communicate(timeout=20)
            return process.returncode, said

    def signalled(self, number: signal.Signals, script: str = "") -> tuple[int, str]:
        """Run, and send a signal to the shell once the driver works."""
        with self.start(script) as process:
            deadline = time.monotonic() + 20
            while not (self.directory / "running").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            _, said = process.communicate(timeout=20)
            return process.returncode, said

    @property
    def calls(self) -> list[str]:
        calls = self.directory / "calls"
        return calls.read_text().splitlines() if calls.exists() else []


bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@bash
@pytest.mark.parametrize(("code", "exit_code"), [("0", 0), ("3", 3), ("2", 2)])
def test_what_is_finished_or_wrong_is_not_tried_again(tmp_path: Path, code: str, exit_code: int) -> None:
    job = Job(tmp_path, f"5 {code}")
    assert job.run()[0] == exit_code
    assert len(job.calls) == 1


@bash
def test_there_is_a_rank_for_each_worker_and_one_for_the_driver(tmp_path: Path) -> None:
    job = Job(tmp_path, "1 0", SLURM_JOB_NUM_NODES="3")
    job.run(render(replace(EXAMPLE, workers_per_node=4)))
    [call] = job.calls
    assert "--ntasks=13" in call
    assert "batch run requests.jsonl -o answers.jsonl --standalone --cluster mpi --model /path/to/model" in call


@bash
def test_mpirun_takes_its_place(tmp_path: Path) -> None:
    job = Job(tmp_path, "1 0")
    job.run(render(replace(EXAMPLE, launcher="mpirun")))
    assert job.calls[0].startswith("mpirun -n 3 ")


@bash
def test_what_breaks_after_some_progress_goes_on_in_the_allocation(tmp_path: Path) -> None:
    job = Job(tmp_path, "5 1", "5 137", "5 0")
    code, said = job.run()
    assert code == 0
    assert len(job.calls) == 3
    assert "goes on in this allocation" in said


@bash
def test_what_breaks_without_progress_is_not_tried_again(tmp_path: Path) -> None:
    job = Job(tmp_path, "5 1", "0 6", "5 0")
    code, said = job.run()
    assert code == 6
    assert len(job.calls) == 2
    assert "no request was finished" in said


@bash
def test_before_the_end_of_its_walltime_the_job_is_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path, "5 wait")
    code, said = job.signalled(signal.SIGUSR1)
    assert code == 0, said
    assert (tmp_path / "stopped").exists()
    assert job.calls[1:] == ["scontrol requeue 17"]


@bash
def test_a_job_that_finished_nothing_is_not_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path, "0 wait")
    code, said = job.signalled(signal.SIGUSR1)
    assert code == 75
    assert "no request was finished: not tried again" in said
    assert len(job.calls) == 1


@bash
def test_without_requeue_the_job_only_ends(tmp_path: Path) -> None:
    job = Job(tmp_path, "5 wait")
    code, said = job.signalled(signal.SIGUSR1, render(replace(EXAMPLE, requeue=False)))
    assert code == 75
    assert "submit it again" in said
    assert len(job.calls) == 1


@bash
def test_a_job_that_is_told_to_end_ends(tmp_path: Path) -> None:
    job = Job(tmp_path, "5 wait")
    code, _ = job.signalled(signal.SIGTERM)
    assert code == 130
    assert (tmp_path / "stopped").exists()
    assert len(job.calls) == 1


@bash
def test_a_job_that_is_preempted_requeues_itself_in_its_grace_time(tmp_path: Path) -> None:
    job = Job(tmp_path, "5 wait")
    (tmp_path / "shown").write_text("PreemptEligibleTime=2026-11-23T02:14:49 PreemptTime=2026-11-23T02:15:09\n")
    code, said = job.signalled(signal.SIGTERM)
    assert code == 0, said
    assert job.calls[1:] == ["scontrol requeue 17"]


@bash
def test_a_task_of_an_array_has_its_part_and_its_own_output(tmp_path: Path) -> None:
    job = Job(tmp_path, "1 0", SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="8")
    assert job.run()[0] == 0
    assert job.calls[0].endswith("-o answers.3.jsonl --standalone --cluster mpi --model /path/to/model --shard 3/8")
    assert (tmp_path / "answers.3.jsonl").exists()


@bash
def test_a_launcher_that_is_none_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, "1 0")
    code, said = job.run(render(EXAMPLE).replace("LAUNCHER=srun", "LAUNCHER=rsh"))
    assert code == 2
    assert "expected srun or mpirun" in said
