"""The Slurm job of a head: its script, run by a real shell with something else in the head's place."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcserve.cluster.head_job import render_head
from hpcserve.cluster.strays import parse_logs
from hpcserve.config.models import Config
from hpcserve.types import WorkerId

STATE = Path("/shared/state of mine/t")


def render(state: Path = STATE, **slurm: Any) -> list[str]:
    config = Config.model_validate({"name": "t", "cluster": {"kind": "slurm", "slurm": {"head": "job", **slurm}}})
    return render_head(config, state).splitlines()


@pytest.mark.parametrize(
    ("slurm", "line"),
    [
        ({}, "#SBATCH --job-name=head.t.hpcserve"),
        ({}, '#SBATCH --output="/shared/state of mine/t/logs/head.log"'),
        ({}, "#SBATCH --requeue"),
        ({}, "#SBATCH --cpus-per-task=2"),
        ({}, "#SBATCH --mem=4G"),
        ({"partition": "gpu"}, "#SBATCH --partition=gpu"),
        ({"partition": "gpu", "head_partition": "cpu"}, "#SBATCH --partition=cpu"),
        ({"head_walltime": "7-0"}, "#SBATCH --time=7-0"),
        ({"account": "a"}, "#SBATCH --account=a"),
        ({"modules": ["python"]}, "module load python || exit 1"),
    ],
)
def test_the_job_asks_for_what_a_head_needs(slurm: dict[str, Any], line: str) -> None:
    assert line in render(**slurm)


def test_the_job_asks_for_nothing_that_is_for_workers() -> None:
    lines = "\n".join(render(gpus=4, exclusive=True, walltime="1:00:00", constraint="h100", memory="500GB", cores=64))
    for word in ("gpu", "exclusive", "1:00:00", "h100", "500", "64"):
        assert word not in lines.partition("head=")[0]


def run_script(tmp_path: Path, program: str, *, term_after: str = "") -> tuple[int, list[str]]:
    """Run the script with a shell program as its interpreter; return the exit code and what was written."""
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/bash\nout={tmp_path}/out\n{program}\n")
    fake.chmod(0o700)
    script = tmp_path / "head.sbatch"
    script.write_text("\n".join(render(tmp_path, python=str(fake))))
    process = subprocess.Popen(["bash", str(script)], start_new_session=True)
    out = tmp_path / "out"
    if term_after:
        while not (out.is_file() and term_after in out.read_text()):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=20), out.read_text().splitlines()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_head_that_is_killed_is_started_again_and_one_that_ends_is_not(tmp_path: Path) -> None:
    code, lines = run_script(tmp_path, "echo $* >> $out; [ $(wc -l < $out) -ge 3 ] && exit 5; kill -9 $$")
    assert code == 5
    assert lines == [f"-m hpcserve.serve.head --state-dir {tmp_path} --own-job"] * 3


def test_a_head_that_is_killed_again_and_again_is_given_up(tmp_path: Path) -> None:
    code, lines = run_script(tmp_path, "echo x >> $out; kill -9 $$")
    assert code == 128 + signal.SIGKILL
    assert len(lines) == 5


def test_slurms_signal_reaches_the_head_whose_end_is_waited_for(tmp_path: Path) -> None:
    program = "trap 'echo told >> $out; exit 0' TERM; echo ready >> $out; while :; do sleep 0.05; done"
    code, lines = run_script(tmp_path, program, term_after="ready")
    assert (code, lines) == (0, ["ready", "told"])


def test_workers_that_nobody_noted_are_known_by_their_logs() -> None:
    def line(job: str, log: str) -> str:
        return f"{job:<24}{log:<1024}"

    listing = "\n".join(
        [
            line("7", f"{STATE}/logs/both-0-ab12.log"),
            line("8", f"{STATE}/logs/head.log"),
            line("9", "/shared/state of mine/other/logs/both-0-ab12.log"),
            line("10", "/home/me/slurm-10.out"),
        ]
    )
    assert parse_logs(listing, STATE) == {"7": WorkerId("both-0-ab12")}
