"""`hpcserve doctor` on a real Slurm: its checks, a probe of two nodes, and the site file that `up` takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures_devcluster import DevCluster
from tests.system.conftest import run_hpcserve

pytestmark = [pytest.mark.real, pytest.mark.slurm, pytest.mark.timeout(120)]

ON_SLURM = ("--cluster", "slurm", "--partition", "short", "--port", "0")


@pytest.fixture
def short(slurm: DevCluster, env: dict[str, str]) -> Iterator[DevCluster]:
    """A partition of two nodes whose jobs may run for an hour."""
    env["SLURM_CONF"] = str(slurm.conf)
    slurm.slurm("scontrol", "create", "PartitionName=short", "Nodes=gpu[1-2]", "MaxTime=60", "State=UP")
    yield slurm
    slurm.slurm("scontrol", "delete", "PartitionName=short")


def examine(env: dict[str, str], *arguments: str) -> tuple[int, dict[str, Any], dict[str, dict[str, str]]]:
    done = run_hpcserve("doctor", "--json", *arguments, env=env)
    found = json.loads(done.stdout)
    return done.returncode, found, {f"{check['group']}/{check['name']}": check for check in found["checks"]}


def test_two_nodes_are_looked_at_and_the_site_file_is_one_that_up_takes(
    short: DevCluster, env: dict[str, str], state_root: Path
) -> None:
    file = state_root / "site.yaml"
    options = ("--set", "cluster.interface=lo", "--nodes", "2", "--walltime", "0:30:00")
    code, found, checks = examine(
        env, *ON_SLURM, "--engine", "mock", *options, "--probe", "2", "--write-site", str(file)
    )
    assert (code, [name for name, check in checks.items() if check["outcome"] == "problem"]) == (0, [])
    assert checks["Slurm/controller"]["found"].startswith("Slurm ")
    assert checks["partition short/walltime"]["found"] == "0:30:00; MaxTime 01:00:00"
    for node, other in (("gpu1", "gpu2"), ("gpu2", "gpu1")):
        ways = [checks[f"node {node}/{way}"]["outcome"] for way in ("to this host", "from this host", f"to {other}")]
        assert ways == ["ok"] * 3
        assert checks[f"node {node}/clock"]["outcome"] == "ok"
        assert "written, locked" in checks[f"node {node}/state directory"]["found"]
    assert found["estimate"]["price"]["per_hour"] == 8.0, "two whole nodes of four GPUs"
    assert found["estimate"]["start"]["wait_s"] < 60
    assert short.slurm("squeue", "--noheader") == ""
    assert list(state_root.iterdir()) == [file]
    check_dry_run(file, env)


def check_dry_run(file: Path, env: dict[str, str]) -> None:
    """The scripts alone are on standard output, as sbatch takes them; when and for how much is on the other."""
    up = run_hpcserve("up", "--config", str(file), "--engine", "mock", "--dry-run", env=env, check=True)
    assert "#SBATCH -p short" in up.stdout
    assert "#SBATCH -t 0:30:00" in up.stdout
    assert "price" not in up.stdout
    start, price = up.stderr.splitlines()
    assert start == "start: the first worker would start now by Slurm's estimate"
    assert price.startswith(
        "price: 1 worker x 4 GPUs: 4 GPU-hours for each hour of service; workers are renewed every 30 m"
    )
    as_json = run_hpcserve("up", "--config", str(file), "--engine", "mock", "--dry-run", "--json", env=env, check=True)
    assert [job["worker"] for job in json.loads(as_json.stdout)] == ["both-0"]
    assert json.loads(as_json.stderr)["price"]["walltime_s"] == 1800


def test_what_is_broken_is_named_with_what_to_change(short: DevCluster, env: dict[str, str], tmp_path: Path) -> None:
    broken = ("--walltime", "3-00:00:00", "--model", str(tmp_path / "gone"), "--set", "cluster.interface=ib7")
    prologue = ("--set", "cluster.slurm.prologue=[echo nothing works; exit 3]")
    code, _, checks = examine(env, *ON_SLURM, *broken, *prologue, "--probe", "1")
    assert code == 7
    problems = {name: check for name, check in checks.items() if check["outcome"] == "problem"}
    job = next(name for name in problems if name.startswith("probe job/"))
    build = "this host/vLLM"  # for CPUs, and the partition has what it calls GPUs
    assert problems.keys() == {"partition short/walltime", "this host/interface", "this host/model", build, job}
    assert "a build for CPUs, and workers are given GPUs" in problems[build]["found"]
    assert "UCX" in checks["this host/NIXL"]["found"]
    assert checks["this host/MPI"]["found"].startswith("mpi4py ")
    assert problems["partition short/walltime"]["change"].startswith("--walltime 01:00:00")
    assert problems["this host/interface"]["found"].startswith("no interface 'ib7'")
    assert "No such file or directory" in problems["this host/model"]["found"]
    assert "exit code 3" in problems[job]["found"]
    assert "its log ends with: nothing works" in problems[job]["found"]
    assert short.slurm("squeue", "--noheader") == ""


def test_what_sbatch_would_refuse_is_a_problem_in_its_words(short: DevCluster, env: dict[str, str]) -> None:
    code, found, checks = examine(env, *ON_SLURM, "--engine", "mock", "--set", "cluster.slurm.constraint=a100")
    check = checks["sbatch --test-only/workers"]
    assert (code, check["outcome"]) == (7, "problem")
    assert check["found"] == "Slurm would not take such jobs: sbatch failed: Invalid feature specification"
    assert found["estimate"]["start"]["problem"] == check["found"]
