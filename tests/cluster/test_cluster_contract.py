"""What every cluster does, whatever it is made of."""

import os
import signal
import time
from pathlib import Path

import pytest

from hpcserve.cluster import Cluster, JobState
from hpcserve.errors import ClusterError
from hpcserve.types import EndCause
from tests.cluster.conftest import Logs, make_spec


async def test_a_launched_worker_is_observed_running_with_its_host_and_start(cluster: Cluster, logs: Logs) -> None:
    spec = make_spec()
    job_id = await cluster.launch(spec)
    await logs.until_started(spec)
    view = (await cluster.observe())[job_id]
    assert view.state is JobState.RUNNING
    assert view.host
    assert view.started_at
    assert view.ends_at is None


async def test_the_agent_is_told_who_it_is_and_where_its_state_is(cluster: Cluster, logs: Logs, tmp_path: Path) -> None:
    spec = make_spec("--greeting", "two words; $HOME")
    await cluster.launch(spec)
    args = (await logs.until_started(spec))["args"]
    options = dict(zip(args[1::2], args[2::2], strict=True))
    assert options["--name"] == "decode-3-a91f"
    assert options["--pool"] == "decode"
    assert options["--role"] == "decode"
    assert options["--state-dir"] == str(tmp_path)
    assert options["--nthreads"] == "1"
    assert options["--memory-limit"]
    assert options["--greeting"] == "two words; $HOME"


async def test_cancelling_asks_the_agent_once_and_it_may_take_its_time(
    cluster: Cluster, logs: Logs, no_youth: None
) -> None:
    spec = make_spec()
    job_id = await cluster.launch(spec)
    await logs.until_started(spec)
    await cluster.cancel([job_id])
    await logs.until_says(spec, "draining")
    await cluster.cancel([job_id])
    with pytest.raises(ClusterError, match=r"still .* after 0\.2 s"):
        await cluster.wait_gone([job_id], timeout_s=0.2)
    assert (await cluster.observe())[job_id].state is JobState.RUNNING
    assert "ended" not in logs.read(spec)


async def test_an_agent_that_drained_has_completed(cluster: Cluster, logs: Logs, no_youth: None) -> None:
    spec = make_spec("--drain-at-once")
    job_id = await cluster.launch(spec)
    await logs.until_started(spec)
    await cluster.cancel([job_id])
    await cluster.wait_gone([job_id], timeout_s=10)
    view = (await cluster.observe())[job_id]
    assert (view.state, view.reason) == (JobState.GONE, "COMPLETED")


async def test_force_ends_an_agent_that_drains(cluster: Cluster, logs: Logs, no_youth: None) -> None:
    spec = make_spec()
    job_id = await cluster.launch(spec)
    await logs.until_started(spec)
    await cluster.cancel([job_id])
    await logs.until_says(spec, "draining")
    await cluster.cancel([job_id], force=True)
    await cluster.wait_gone([job_id], timeout_s=10)
    assert (await cluster.observe())[job_id].state is JobState.GONE


async def test_force_ends_an_agent_that_was_never_asked(cluster: Cluster, logs: Logs) -> None:
    spec = make_spec()
    job_id = await cluster.launch(spec)
    await logs.until_started(spec)
    await cluster.cancel([job_id], force=True)
    await cluster.wait_gone([job_id], timeout_s=10)


async def test_a_worker_that_fails_is_gone_with_its_exit_code(cluster: Cluster) -> None:
    job_id = await cluster.launch(make_spec("--exit", "3"))
    await cluster.wait_gone([job_id], timeout_s=20)
    view = (await cluster.observe())[job_id]
    assert (view.state, view.reason) == (JobState.GONE, "FAILED: exit code 3")
    end = (await cluster.ends([job_id, "999999"]))[job_id]
    assert (end.cause, end.detail) == (EndCause.FAILED, "FAILED: exit code 3")


async def test_a_running_worker_has_no_end_and_a_killed_one_was_killed(cluster: Cluster, logs: Logs) -> None:
    spec = make_spec()
    job_id = await cluster.launch(spec)
    around = await logs.until_started(spec)
    assert await cluster.ends([job_id]) == {}
    os.kill(around["pid"], signal.SIGKILL)
    await cluster.wait_gone([job_id], timeout_s=20)
    assert (await cluster.ends([job_id]))[job_id].cause is EndCause.KILLED


async def test_an_estimated_start_is_a_time_to_come_or_not_known_and_submits_nothing(cluster: Cluster) -> None:
    starts_at = await cluster.estimate_start(make_spec())
    assert starts_at is None or starts_at > time.time() - 5
    assert await cluster.observe() == {}


async def test_cancelling_what_is_gone_or_unknown_is_no_error(cluster: Cluster) -> None:
    job_id = await cluster.launch(make_spec("--exit", "0"))
    await cluster.wait_gone([job_id, "1:1"], timeout_s=20)
    await cluster.cancel([job_id, "999999"])
    await cluster.cancel([job_id], force=True)


async def test_close_ends_every_worker_and_may_be_repeated(cluster: Cluster, logs: Logs) -> None:
    specs = [make_spec(worker=f"decode-{index}") for index in range(3)]
    for spec in specs:
        await cluster.launch(spec)
    for spec in specs:
        await logs.until_started(spec)
    await cluster.close()
    await cluster.close()
    assert await cluster.observe() == {}


async def test_check_accepts_what_fits(cluster: Cluster) -> None:
    await cluster.check(3, num_nodes=3)
