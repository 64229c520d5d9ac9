"""Reading what Slurm 22.05 printed on the development cluster, and the forms that other sites have."""

import pytest

from hpcserve.cluster import JobState
from hpcserve.cluster.slurm_output import parse_gpus, parse_partitions, parse_queue, parse_time, plain_words


def _line(job: str, state: str, status: str, start: str, end: str, limit: str, nodes: str, reason: str) -> str:
    return f"{job:24}{state:24}{status:12}{start:24}{end:24}{limit:24}{nodes:128}{reason:256}"


_QUEUE = "\n".join(
    [
        _line("28", "PENDING", "0", "1795362731", "NONE", "UNLIMITED", "", "Resources"),
        _line("32", "PENDING", "0", "N/A", "N/A", "10:00", "", "ReqNodeNotAvail, UnavailableNodes:gpu[1-2]"),
        _line("20", "RUNNING", "0", "1795362130", "1795362730", "10:00", "gpu1", "None"),
        _line("21", "RUNNING", "0", "1795362130", "1826898130", "UNLIMITED", "gpu2", "None"),
        _line("22", "CONFIGURING", "0", "1795362130", "1795362730", "10:00", "gpu3", "None"),
        _line("23", "COMPLETING", "768", "1795362130", "1795362140", "10:00", "gpu4", "NonZeroExitCode"),
        _line("24", "FAILED", "768", "1795362130", "1795362140", "10:00", "gpu4", "NonZeroExitCode"),
        _line("25", "FAILED", "15", "1795361215", "1795361215", "10:00", "gpu1", "JobLaunchFailure"),
        _line("26", "CANCELLED", "15", "1795361214", "1795361214", "10:00", "gpu1", "None"),
        _line("27", "TIMEOUT", "15", "1795361214", "1795361814", "10:00", "gpu1", "TimeLimit"),
        _line("33", "NODE_FAIL", "1", "1795361214", "1795361814", "10:00", "gpu1", "NodeDown"),
        _line("34", "OUT_OF_MEMORY", "125", "1795361214", "1795361814", "10:00", "gpu1", "OutOfMemory"),
        _line("35", "PREEMPTED", "0", "1795361214", "1795361814", "10:00", "gpu1", "None"),
        _line("36", "SUSPENDED", "0", "1795362130", "1795362730", "10:00", "gpu1", "None"),
        _line("37", "SOMETHING_NEW", "0", "1795362130", "1795362730", "10:00", "gpu1", "(null)"),
        _line("38", "COMPLETED", "0", "1795361214", "1795361814", "10:00", "gpu1", "None"),
    ]
)


@pytest.mark.parametrize(
    ("job_id", "state", "reason"),
    [
        ("28", JobState.PENDING, "Resources"),
        ("32", JobState.PENDING, "ReqNodeNotAvail, UnavailableNodes:gpu[1-2]"),
        ("20", JobState.RUNNING, ""),
        ("22", JobState.PENDING, "CONFIGURING"),
        ("23", JobState.GONE, "FAILED: exit code 3"),
        ("24", JobState.GONE, "FAILED: exit code 3"),
        ("25", JobState.GONE, "FAILED: killed by SIGTERM"),
        ("26", JobState.GONE, "CANCELLED"),
        ("27", JobState.GONE, "TIMEOUT"),
        ("33", JobState.GONE, "NODE_FAIL"),
        ("34", JobState.GONE, "OUT_OF_MEMORY"),
        ("35", JobState.GONE, "PREEMPTED"),
        ("36", JobState.RUNNING, "SUSPENDED"),
        ("37", JobState.RUNNING, "SOMETHING_NEW"),
        ("38", JobState.GONE, "COMPLETED"),
    ],
)
def test_a_job_has_a_state_and_the_reason_for_it(job_id: str, state: JobState, reason: str) -> None:
    view = parse_queue(_QUEUE)[job_id].view
    assert (view.state, view.reason) == (state, reason)


def test_a_running_job_has_a_host_a_start_and_an_end() -> None:
    view = parse_queue(_QUEUE)["20"].view
    assert (view.host, view.started_at, view.ends_at) == ("gpu1", 1795362130.0, 1795362730.0)


def test_a_job_without_a_time_limit_has_no_end() -> None:
    assert parse_queue(_QUEUE)["21"].view.ends_at is None


def test_slurms_guess_of_a_pending_jobs_start_is_no_start() -> None:
    view = parse_queue(_QUEUE)["28"].view
    assert (view.host, view.started_at, view.ends_at) == (None, None, None)


def test_a_completing_job_is_gone_but_still_in_the_queue() -> None:
    entries = parse_queue(_QUEUE)
    assert entries["23"].is_queued
    assert not entries["24"].is_queued


def test_an_empty_queue_holds_nothing() -> None:
    assert parse_queue("") == {}
    assert parse_queue("\n") == {}


@pytest.mark.parametrize("text", ["N/A", "NONE", "Unknown", "(null)", "", "0"])
def test_what_is_no_time_is_none(text: str) -> None:
    assert parse_time(text) is None


def test_times_are_read_in_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_time("1795362130") == 1795362130.0
    two_days_s = 2 * 86400
    later, earlier = parse_time("2026-11-24T15:26:54"), parse_time("2026-11-22T15:26:54")
    assert later is not None
    assert earlier is not None
    assert later - earlier == two_days_s


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:4", {"": 4}),
        ("gpu", {"": 1}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:a100:4(S:0-1),nvme:1", {"a100": 4}),
        ("fabric:2,gpu:a100_3g.20gb:2,gpu:v100:1", {"a100_3g.20gb": 2, "v100": 1}),
        ("(null)", {}),
        ("nvme:1", {}),
    ],
)
def test_gpus_are_counted_by_type(gres: str, gpus: dict[str, int]) -> None:
    assert parse_gpus(gres) == gpus


def test_partitions_hold_their_nodes_and_one_is_the_default() -> None:
    partitions = parse_partitions("gpu*|gpu1|8|20000|gpu:4\ngpu*|gpu2|8|20000|gpu:4\ncpu|node1|64+|512000+|(null)\n")
    assert {name: len(partition.nodes) for name, partition in partitions.items()} == {"gpu": 2, "cpu": 1}
    assert [name for name, partition in partitions.items() if partition.is_default] == ["gpu"]
    assert (partitions["cpu"].nodes[0].cpus, partitions["cpu"].nodes[0].memory_mb) == (64, 512000)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (
            "sbatch: error: invalid partition specified: nope\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
            "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified",
        ),
        ("slurm_load_jobs error: Invalid job id specified", "Invalid job id specified"),
        ("allocation failure: Invalid feature specification\n", "Invalid feature specification"),
        ("", "it gave no reason"),
    ],
)
def test_a_complaint_becomes_one_line_in_slurms_own_words(problem: str, words: str) -> None:
    assert plain_words(problem) == words
