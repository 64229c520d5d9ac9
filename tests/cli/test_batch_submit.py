"""`hpcserve batch submit`: what is refused before anything is submitted, and what is submitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

MOCK = ("--engine", "mock")


@pytest.fixture
def directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an input, and an `sbatch` that keeps what it gets."""
    body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}
    lines = [
        {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number in range(5)
    ]
    (home / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tools = home / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text('#!/bin/sh\necho "$@" > submitted.args\ncat > submitted\necho "17;cluster"\n')
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.chdir(home)
    return home


def test_a_job_is_submitted_and_its_id_printed(directory: Path, run: Run) -> None:
    done = run("batch", "submit", "in.jsonl", "-o", "out.jsonl", "--nodes", "4", "--time", "02:00:00", *MOCK)
    assert done.exit_code == 0, done.output
    assert done.stdout == "17\n"
    assert "job 17: 5 requests, 4 nodes, 4 workers" in done.stderr
    assert "out.errors.jsonl" in done.stderr
    assert "tail -F out.slurm-17.log" in done.stderr
    script = (directory / "submitted").read_text()
    assert "#SBATCH --nodes=4\n" in script
    assert "#SBATCH --time=02:00:00\n" in script
    assert "\nINPUT=in.jsonl\n" in script
    assert "--output out.jsonl" not in script


def test_a_dry_run_prints_the_same_script_and_submits_nothing(directory: Path, run: Run) -> None:
    command = ("batch", "submit", "in.jsonl", "-o", "out.jsonl", "--nodes", "2", *MOCK)
    printed = run(*command, "--dry-run")
    assert not (directory / "submitted").exists()
    run(*command)
    assert (directory / "submitted").read_text() == printed.stdout


def test_options_of_the_run_go_into_the_job_as_they_were_typed(directory: Path, run: Run) -> None:
    (directory / "in.txt").write_text("one\ntwo\n")
    done = run(
        "batch", "submit", "--nodes", "1", "--system", "Be kind; $HOME", "--prompts", "in.txt", "-o", "out.jsonl",
        "--set", "engine.kind=mock", "--set", "cluster.slurm.gpus=0", "--max-tokens", "5", "--dry-run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    options = next(line for line in done.stdout.splitlines() if line.startswith("OPTIONS="))
    assert options == (
        "OPTIONS=(--system 'Be kind; $HOME' --prompts --set engine.kind=mock --set cluster.slurm.gpus=0 --max-tokens 5)"
    )


def test_all_that_is_wrong_with_the_input_is_said_before_anything_is_submitted(directory: Path, run: Run) -> None:
    with (directory / "in.jsonl").open("a") as file:
        file.write("{nonsense\n" + (directory / "in.jsonl").read_text().splitlines()[0] + "\n")
    done = run("batch", "submit", "in.jsonl", "-o", "out.jsonl", "--nodes", "1", *MOCK)
    assert done.exit_code == 2
    assert "line 6: is not valid JSON" in done.stderr
    assert "line 7: custom_id 'q0' is that of line 1, too" in done.stderr
    assert not (directory / "submitted").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--nodes"),
        (("--nodes", "0"), "--nodes"),
        (("--nodes", "1", "--array", "6"), "--array 6: the input has 5 requests only"),
        (("--nodes", "1", "--gpus-per-node", "1", "--workers-per-node", "2"), "--gpus-per-node 1 is too few"),
        (("--nodes", "1", "--fresh"), "--fresh"),
        (("--nodes", "1", "--endpoint", "http://x/v1"), "--endpoint"),
        (("--nodes", "1", "--time", "soon"), "--walltime"),
        (("--nodes", "1", "--launcher", "srun", "--set", "kv.transport=mpi"), "--launcher mpirun"),
        (("--nodes", "1", "-o", "nowhere/out.jsonl"), "no directory nowhere"),
        (("--nodes", "1", "--max-tokens", "5"), "--max-tokens is for --prompts"),
    ],
)
def test_wrong_options_are_refused(directory: Path, run: Run, options: tuple[str, ...], words: str) -> None:
    done = run("batch", "submit", "in.jsonl", "-o", "out.jsonl", *MOCK, *options)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not (directory / "submitted").exists()


def test_a_model_that_is_not_there_is_refused(directory: Path, run: Run) -> None:
    done = run("batch", "submit", "in.jsonl", "-o", "out.jsonl", "--nodes", "1", "--set", "model.path=gone", *MOCK)
    assert done.exit_code == 2
    assert "is not a directory" in done.stderr


def test_tasks_of_an_array_are_explained_with_how_to_put_them_together(directory: Path, run: Run) -> None:
    done = run("batch", "submit", "in.jsonl", "-o", "out.jsonl", "--nodes", "1", "--array", "5", *MOCK)
    assert done.exit_code == 0, done.output
    assert "jobs 17_0 to _4" in done.stderr
    assert "hpcserve batch merge -o out.jsonl" in done.stderr
    assert "#SBATCH --array=0-4\n" in (directory / "submitted").read_text()


def test_kv_over_mpi_is_started_by_mpirun(directory: Path, run: Run) -> None:
    done = run(
        "batch", "submit", "in.jsonl", "-o", "o.jsonl", "--nodes", "1", "--set", "kv.transport=mpi", "--dry-run", *MOCK
    )
    assert "\nLAUNCHER=mpirun\n" in done.stdout


def test_slurms_refusal_is_shown(directory: Path, run: Run) -> None:
    (directory / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid account' >&2\nexit 1\n")
    done = run("batch", "submit", "in.jsonl", "-o", "out.jsonl", "--nodes", "1", *MOCK)
    assert done.exit_code == 4
    assert "invalid account" in done.stderr


def test_without_slurm_it_says_so(directory: Path, run: Run) -> None:
    (directory / "bin" / "sbatch").unlink()
    done = run("batch", "submit", "in.jsonl", "-o", "out.jsonl", "--nodes", "1", *MOCK)
    assert done.exit_code in (2, 4)
    assert not (directory / "submitted").exists()
