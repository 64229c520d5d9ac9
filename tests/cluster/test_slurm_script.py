"""Job scripts, for every way a site wants to be asked. Nothing is submitted."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hpcserve.cluster.protocol import WorkerSpec
from hpcserve.cluster.slurm import SlurmCluster
from hpcserve.cluster.slurm_script import import_dask_jobqueue, parse_memory_mb
from hpcserve.config.planning_models import RenewalConfig
from hpcserve.types import Role, WorkerId
from tests.cluster.conftest import make_config, make_spec

STATE = Path("/shared/state of mine/100%")


def render(*args: str, state_dir: Path = STATE, **slurm: Any) -> list[str]:
    return SlurmCluster(make_config(**slurm), state_dir).render(make_spec(*args)).splitlines()


def directives(**slurm: Any) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in render(**slurm) if line.startswith("#SBATCH")]


@pytest.mark.parametrize(
    ("slurm", "line"),
    [
        ({}, "--gres=gpu:1"),
        ({"gpus": 4}, "--gres=gpu:4"),
        ({"gpus": 4, "gpu_type": "a100"}, "--gres=gpu:a100:4"),
        ({"gpus": 2, "gpu_request": "gpus-per-node"}, "--gpus-per-node=2"),
        ({"gpus": 2, "gpu_request": "gpus-per-node", "gpu_type": "h100"}, "--gpus-per-node=h100:2"),
        ({"gpus": 2, "gpu_request": "gpus-per-task"}, "--gpus-per-task=2"),
        ({"gpus": 2, "gpu_request": "gpus-per-task", "gpu_type": "h100"}, "--gpus-per-task=h100:2"),
    ],
)
def test_gpus_are_asked_for_as_the_site_wants(slurm: dict[str, Any], line: str) -> None:
    assert [each for each in directives(**slurm) if "gpu" in each] == [line]


@pytest.mark.parametrize("slurm", [{"gpu_request": "none"}, {"gpus": 0}, {"gpus": 0, "gpu_request": "gpus-per-node"}])
def test_no_gpus_are_asked_for_where_none_are_wanted(slurm: dict[str, Any]) -> None:
    assert not [each for each in directives(**slurm) if "gpu" in each]


def test_everything_a_site_may_want_is_in_the_header() -> None:
    lines = directives(
        partition="gpu",
        account="chem",
        qos="high",
        constraint="a100&ib",
        walltime="12:00:00",
        cores=16,
        memory="64GB",
        extra_directives=["--mail-type=END", "#SBATCH --exclusive"],
    )
    assert lines == [
        "-J decode-3-a91f.demo.hpcserve",
        "-p gpu",
        "-A chem",
        "-n 1",
        "--cpus-per-task=16",
        "--mem=64G",
        "-t 12:00:00",
        '--output="/shared/state of mine/100%%/logs/decode-3-a91f.log"',
        "--no-requeue",
        "--signal=B:TERM@30",
        "--gres=gpu:1",
        "--qos=high",
        '--constraint="a100&ib"',
        "--mail-type=END",
        "--exclusive",
    ]


def test_what_is_not_configured_is_left_to_the_cluster() -> None:
    lines = directives(gpu_request="none")
    assert [line.split("=")[0].split(" ")[0] for line in lines] == [
        "-J", "-n", "--cpus-per-task", "--output", "--no-requeue", "--signal",
    ]  # fmt: skip


def test_skipped_directives_are_left_out_and_extra_ones_never() -> None:
    lines = directives(
        memory="64GB", skip_directives=["--mem", "--gres", "-n 1", "--signal"], extra_directives=["--mem-per-gpu=64G"]
    )
    assert "--mem-per-gpu=64G" in lines
    assert not [line for line in lines if line.startswith(("--mem=", "--gres", "-n ", "--signal"))]


def test_excluded_nodes_are_left_out_and_without_any_there_is_no_line() -> None:
    spec = WorkerSpec(worker=WorkerId("both-0-a"), pool="both", role=Role.BOTH, exclude=("n1", "n7"))
    assert "#SBATCH --exclude=n1,n7" in SlurmCluster(make_config(), STATE).render(spec).splitlines()
    assert not [line for line in directives() if line.startswith("--exclude")]


def test_slurms_warning_comes_after_the_head_had_the_worker_leave_and_earlier_where_the_head_does_not() -> None:
    config = make_config()
    quick = config.model_copy(update={"renewal": RenewalConfig(leave_s=5.0)})
    off = config.model_copy(update={"renewal": RenewalConfig(enabled=False)})
    for each, seconds in ((quick, 15), (off, 60)):
        assert f"#SBATCH --signal=B:TERM@{seconds}" in SlurmCluster(each, STATE).render(make_spec()).splitlines()


def test_modules_and_prologue_come_before_the_agent_which_takes_the_shells_place() -> None:
    lines = render(modules=["cuda/12.8", "gcc"], prologue=["export A='b c'"], python="/opt/my env/bin/python")
    body = [line for line in lines if line and not line.startswith("#")]
    assert body[:4] == [
        "type module > /dev/null 2>&1 || source /etc/profile",
        "module load cuda/12.8 || exit 1",
        "module load gcc || exit 1",
        "export A='b c'",
    ]
    assert body[4].startswith("exec '/opt/my env/bin/python' -m hpcserve.agent by-state-dir --name decode-3-a91f ")
    assert "--state-dir '/shared/state of mine/100%' --pool decode --role decode" in body[4]
    assert len(body) == 5


def test_extra_arguments_reach_the_agent_unharmed() -> None:
    assert render("--note", "it's $HOME")[-1].endswith("--role decode --note 'it'\"'\"'s $HOME'")


def test_a_users_jobqueue_settings_change_nothing() -> None:
    import dask

    plain = render()
    theirs = {"queue": "secret", "walltime": "99:00:00", "interface": "eth9", "job-extra-directives": ["--mail-user=x"]}
    with dask.config.set({"jobqueue.slurm": theirs}):
        assert render() == plain


def test_dask_jobqueue_is_imported_on_any_thread_and_leaves_the_interrupt_handler_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as other_thread:
        other_thread.submit(import_dask_jobqueue).result()
    import_dask_jobqueue()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("text", "memory_mb"),
    [("64GB", 65536), ("64G", 65536), ("64 GiB", 65536), ("1.5T", 1572864), ("500M", 500), ("1k", 1), ("2000KB", 2)],
)
def test_memory_is_read_as_slurm_would(text: str, memory_mb: int) -> None:
    assert parse_memory_mb(text) == memory_mb
