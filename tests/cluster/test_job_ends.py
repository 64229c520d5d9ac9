"""What Slurm says of a job that ended, as Slurm 22.05 printed it, read into causes."""

from __future__ import annotations

import pytest

from hpcserve.cluster.job_ends import cause_of, parse_accounting, parse_job_record, read_ends
from hpcserve.cluster.protocol import JobState, JobView
from hpcserve.cluster.slurm_output import parse_start_estimate
from hpcserve.types import EndCause


def record(state: str, *, reason: str = "None", exit_code: str = "0:0", preempted: str = "None") -> str:
    return f"""JobId=8 JobName=both-0-a91f.demo.hpcserve
   UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode={exit_code}
   DerivedExitCode=0:0
   StartTime=1795405183 EndTime=1795405246 Deadline=N/A
   PreemptEligibleTime=1795405183 PreemptTime={preempted}
   Partition=gpu AllocNode:Sid=localhost:17281
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=gpu1
   BatchHost=gpu1
   TRES=cpu=8,mem=20000M,node=1,billing=8
   JOB_GRES=gpu:a100:4
     Nodes=gpu1 CPU_IDs=0-7 Mem=20000 GRES=
"""


@pytest.mark.parametrize(
    ("text", "cause", "detail"),
    [
        (record("TIMEOUT", reason="TimeLimit", exit_code="0:9"), EndCause.WALLTIME, "TIMEOUT: TimeLimit"),
        (record("CANCELLED", exit_code="0:9"), EndCause.CANCELLED, "CANCELLED"),
        (record("PREEMPTED", preempted="1795405240"), EndCause.PREEMPTED, "PREEMPTED"),
        (record("COMPLETED", preempted="1795405240"), EndCause.PREEMPTED, "PREEMPTED, then COMPLETED"),
        (record("COMPLETING", preempted="1795405240"), EndCause.PREEMPTED, "PREEMPTED"),
        (record("NODE_FAIL", reason="NodeDown"), EndCause.NODE_FAILURE, "NODE_FAIL: NodeDown"),
        (record("BOOT_FAIL"), EndCause.NODE_FAILURE, "BOOT_FAIL"),
        (record("FAILED", reason="Prolog", exit_code="0:0"), EndCause.NODE_FAILURE, "FAILED: Prolog"),
        (record("OUT_OF_MEMORY", exit_code="0:125"), EndCause.OUT_OF_MEMORY, "OUT_OF_MEMORY"),
        (record("FAILED", reason="NonZeroExitCode", exit_code="3:0"), EndCause.FAILED, "FAILED: exit code 3"),
        (record("FAILED", reason="JobLaunchFailure", exit_code="0:9"), EndCause.KILLED, "FAILED: killed by SIGKILL"),
        (record("COMPLETED"), EndCause.UNKNOWN, "COMPLETED"),
    ],
)
def test_each_way_to_end_has_its_cause(text: str, cause: EndCause, detail: str) -> None:
    end = parse_job_record(text)
    assert end is not None
    assert (end.cause, end.detail, end.node, end.ended_at, end.num_gpus) == (cause, detail, "gpu1", 1795405246.0, 4)


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING", "SUSPENDED", ""])
def test_of_a_job_that_has_not_ended_for_good_nothing_is_said(state: str) -> None:
    assert parse_job_record(record(state)) is None


def test_the_accounting_knows_those_that_slurmctld_has_forgotten() -> None:
    ends = parse_accounting(
        "11|CANCELLED by 1000|0:0|gpu1|1795405246|None|billing=8,cpu=8,gres/gpu=4,node=1\n"
        "12|TIMEOUT|0:0|gpu2|1795405246|TimeLimit|cpu=8\n"
        "13|FAILED|0:9|gpu2|1795405246|None|cpu=8\n"
        "14|RUNNING|0:0|gpu3|Unknown||cpu=8\n"
    )
    assert {job: end.cause for job, end in ends.items()} == {
        "11": EndCause.CANCELLED,
        "12": EndCause.WALLTIME,
        "13": EndCause.KILLED,
    }
    assert (ends["11"].num_gpus, ends["11"].node, ends["11"].ended_at) == (4, "gpu1", 1795405246.0)


def test_without_slurm_the_words_of_the_process_are_all_there_is() -> None:
    gone = JobView(job_id="1", state=JobState.GONE, reason="FAILED: killed by SIGKILL", host="n")
    alive = JobView(job_id="2", state=JobState.RUNNING)
    ends = read_ends({"1": gone, "2": alive}, ["1", "2", "3"])
    assert {job: end.cause for job, end in ends.items()} == {"1": EndCause.KILLED}
    assert cause_of("FAILED: exit code 1") is EndCause.FAILED
    assert cause_of("FAILED: rank 2 on n1 was lost") is EndCause.FAILED
    assert cause_of("not known to Slurm any more") is EndCause.UNKNOWN


def test_the_estimate_of_a_start_is_read_in_either_form_of_time() -> None:
    said = "sbatch: Job 11 to start at {} using 8 processors on nodes gpu2 in partition gpu\n"
    assert parse_start_estimate(said.format("1795405246")) == 1795405246.0
    assert parse_start_estimate(said.format("2026-11-23T04:39:43")) is not None
    assert parse_start_estimate("sbatch: nothing of the kind") is None
