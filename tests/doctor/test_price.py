"""What a deployment would cost and when it would serve, in numbers and in words."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hpcserve.cluster.slurm_settings import SlurmSettings
from hpcserve.config.models import Config
from hpcserve.doctor.durations import as_walltime, hours_in_words, in_words
from hpcserve.doctor.price import Price, Start, describe, learned, price
from hpcserve.types import EndCause, WorkerId
from hpcserve.worker_log import WorkerLife

HOUR = 3600.0


def cost(settings: SlurmSettings, partition: str, walltime_s: float | None, **given: Any) -> Price:
    slurm = given.pop("slurm", {})
    config = Config.model_validate({"cluster": {"kind": "slurm", "slurm": slurm}, **given})
    return price(config, settings.nodes[partition], walltime_s)


def words(found: Price, start: Start | None = None) -> dict[str, str]:
    return dict(describe(found, start or Start(), time.time()))


def test_whole_nodes_cost_all_their_gpus(large: SlurmSettings) -> None:
    found = cost(large, "gpu", 8 * HOUR, slurm={"exclusive": True}, pools={"workers": 3}, renewal={"enabled": False})
    assert (found.unit, found.per_worker, found.per_hour, found.at_most) == ("GPU-hours", 4, 12.0, 96.0)
    assert words(found)["price"] == (
        "3 workers x 4 GPUs: 12 GPU-hours for each hour of service, 96 at most (walltime 8 h, not renewed)"
    )


def test_workers_that_are_renewed_cost_until_they_are_taken_down(large: SlurmSettings) -> None:
    found = cost(large, "gpu", 8 * HOUR, slurm={"gpus": 1})
    assert found.at_most is None
    assert words(found)["price"] == (
        "1 worker: 1 GPU-hour for each hour of service; workers are renewed every 8 h, so only `hpcserve down` ends it"
    )


def test_without_gpus_nodes_or_workers_are_counted(large: SlurmSettings) -> None:
    assert cost(large, "cpu", None, slurm={"exclusive": True, "gpu_request": "none"}).unit == "node-hours"
    assert cost(large, "cpu", None, slurm={"gpu_request": "none"}).unit == "worker-hours"


def test_with_the_planner_the_price_is_a_range(large: SlurmSettings) -> None:
    planner = {"enabled": True, "min_workers": 0, "max_workers": 8}
    found = cost(large, "gpu", None, slurm={"gpus": 2}, planner=planner, pools={"workers": 2})
    assert words(found)["planner"] == "0 to 8 workers: 0 to 16 GPU-hours an hour"


def test_the_start_is_said_with_its_source_and_the_load_time_that_was_learned(large: SlurmSettings) -> None:
    found = cost(large, "gpu", None)
    start = Start(wait_s=2 * HOUR, wait_source="Slurm's estimate", load_s=200.0, num_learned=5)
    said = words(found, start)["start"]
    assert said.startswith("the first worker would start in 2 h (")
    assert "by Slurm's estimate, and it takes 3 min to load (as 5 workers of this deployment did): READY about" in said
    assert words(found, Start(wait_s=0.0))["start"] == "the first worker would start now"
    both = words(found, Start(wait_s=0.0, wait_source="Slurm's estimate", all_wait_s=4 * HOUR))["start"]
    assert both.startswith("the first worker would start now by Slurm's estimate, all of them at once in 4 h (")
    assert words(found, Start())["start"] == "nobody knows when Slurm would start the first worker"
    assert words(found, Start(problem="no such account"))["start"] == "not known: no such account"


def life(submitted: float, started: float | None, ready: float | None, cluster: str = "slurm") -> WorkerLife:
    return WorkerLife(
        worker=WorkerId("w"), pool="both", cluster=cluster, job_id="1", submitted_at=submitted, started_at=started,
        ready_at=ready, ended_at=9e9, cause=EndCause.TOLD,
    )  # fmt: skip


def test_waits_and_load_times_are_those_of_the_middle_worker_that_became_ready() -> None:
    lives = [life(0, 10, 40), life(0, 20, 60), life(0, 500, 2000), life(0, 5, None), life(0, 1, 2, cluster="local")]
    assert learned(lives, "slurm") == (20.0, 40.0, 3)
    assert learned([], "slurm") == (None, None, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (600, "10 min"), (12_000, "3 h 20 min"), (86400, "24 h"), (187_200, "2 d 4 h"), (-3, "0 s")],
)
def test_spans_are_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert in_words(seconds) == text


def test_a_span_is_written_as_sbatch_takes_it() -> None:
    assert [as_walltime(each) for each in (5400, 172_800, 30)] == ["01:30:00", "2-00:00:00", "00:00:00"]


def test_hours_have_as_many_digits_as_matter() -> None:
    texts = [hours_in_words(each) for each in (0, 0.01745, 1, 3.419, 96, 384.26, 1234567)]
    assert texts == ["0", "0.0175", "1", "3.42", "96", "384.3", "1,234,567"]
