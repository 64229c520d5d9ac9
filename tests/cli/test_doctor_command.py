"""`hpcserve doctor` on this machine, and how its findings are shown."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from hpcserve.config import load
from hpcserve.doctor import host
from tests.doctor.conftest import CPU_BUILD

MOCK = ("doctor", "--engine", "mock", "--cluster", "local", "--port", "0")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the libraries as they are elsewhere: to import them takes ten seconds."""
    monkeypatch.setattr(host, "find_libraries", lambda: CPU_BUILD)
    monkeypatch.setattr(host, "find_gpus", lambda: ((), "there is no nvidia-smi"))


def test_a_machine_without_fault_exits_with_0(run, home: Path) -> None:
    result = run(*MOCK)
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert "this host" in lines
    assert any(line.startswith("  ok       state directory: ") for line in lines)
    assert any("start: the first worker would start now" in line for line in lines)
    assert lines[-1].endswith("nothing is in the way")
    assert not (home / "state" / "default").exists()


def test_a_problem_is_one_line_with_what_to_change_below_it_and_exits_with_7(run, home: Path) -> None:
    result = run(
        "doctor", "--cluster", "local", "--port", "0", "--model", str(home / "gone"), "--set", "cluster.interface=ib0"
    )
    assert result.exit_code == 7
    lines = result.stdout.splitlines()
    found = next(number for number, line in enumerate(lines) if line.startswith("  PROBLEM  model: "))
    assert "No such file or directory" in lines[found]
    assert lines[found + 1].strip() == "-> --model: a model's directory that this host can read"
    assert any(line.startswith("  PROBLEM  interface: no interface 'ib0' with an IPv4 address") for line in lines)
    assert lines[-1].startswith("2 problems, ")
    summary = lines.index("to change, or `hpcserve up` would not work")
    assert [line.split(":")[0] for line in lines[summary + 1 : -2]] == [
        "  1. interface (this host)",
        "  2. model (this host)",
    ]


def test_json_has_every_check_and_the_estimate(run, home: Path) -> None:
    result = run(*MOCK, "--json")
    found = json.loads(result.stdout)
    assert (found["ok"], found["cluster"], found["site_file"]) == (True, "local", None)
    assert {"name", "outcome", "found", "change", "group"} == set(found["checks"][0])
    assert {check["outcome"] for check in found["checks"]} <= {"ok", "warning", "skipped"}
    assert found["estimate"]["start"]["wait_s"] == 0.0
    assert found["estimate"]["price"] is None


def test_settings_that_contradict_each_other_are_problems_and_the_rest_is_checked(run, home: Path) -> None:
    result = run(*MOCK, "--set", "kv.transport=mpi")
    assert result.exit_code == 7
    assert "PROBLEM  options: kv.transport = 'mpi'" in result.stdout
    assert "state directory" in result.stdout


def test_a_port_that_is_taken_is_a_problem_with_what_to_do(run, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(*MOCK, "--port", str(port))
    assert result.exit_code == 7
    assert f"  1. options (configuration): cannot listen on 127.0.0.1:{port}: " in result.stdout
    assert "choose another with --port" in result.stdout


def test_the_site_file_is_written_and_loads(run, home: Path) -> None:
    file = home / "site.yaml"
    result = run(*MOCK, "--write-site", str(file))
    assert result.exit_code == 0
    assert f"hpcserve up --config {file}" in result.stderr
    assert load(file=file, environ={}, allow_contradictions=True).config.cluster.kind == "local"
    again = run(*MOCK, "--write-site", str(file))
    assert (again.exit_code, again.stdout) == (2, "")
    assert "is there already" in again.stderr


def test_the_site_file_may_be_the_one_that_is_read_by_itself(run, home: Path) -> None:
    file = home / ".config" / "hpcserve" / "config.yaml"
    assert "config.yaml is written: hpcserve up reads it" in run(*MOCK, "--write-site", str(file)).stderr
    assert run("config", "path").stdout == f"{file}\n"
    (file.parent / "file").touch()
    assert run(*MOCK, "--write-site", str(file.parent / "file" / "site.yaml")).exit_code == 2


def test_without_slurms_commands_that_is_the_problem(run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))
    result = run("doctor", "--engine", "mock", "--cluster", "slurm")
    assert result.exit_code == 7
    assert "PROBLEM  commands: not on PATH: sbatch, squeue, scancel, sinfo, scontrol" in result.stdout
    assert "--cluster local" in result.stdout
