"""One host's network, storage, limits and libraries against what a deployment needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from hpcserve.config.models import Config
from hpcserve.doctor.check import Check, Outcome
from hpcserve.doctor.host_checks import check_limits, check_network, check_storage, size
from hpcserve.doctor.libraries import Gpu, Libraries, Torch, parse_gpus
from hpcserve.doctor.node_checks import check_nodes
from hpcserve.doctor.probe_job import ProbeResult
from hpcserve.doctor.rendezvous import Visit
from hpcserve.doctor.software_checks import check_gpus, check_libraries, check_python
from tests.doctor.conftest import CPU_BUILD, GPU_BUILD, make_config, make_report

A100 = Gpu(name="NVIDIA A100-SXM4-80GB", memory_mb=81920, driver="580.65", capability="8.0")


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def network(interface: str | None = None, **given: Any) -> Check:
    config = Config.model_validate({"cluster": {"kind": "slurm", "interface": interface}})
    return by_name(check_network(make_report(**given), config, is_spread=True))["interface"]


def test_an_interface_that_is_not_there_comes_with_those_that_are() -> None:
    check = network("ib1", address="", address_error="no interface 'ib1' with an IPv4 address")
    assert check.outcome is Outcome.PROBLEM
    assert check.found == "no interface 'ib1' with an IPv4 address on g001; did you mean 'ib0'?"
    assert check.change == "cluster.interface: ib0"


def test_a_fast_network_that_the_hosts_name_does_not_stand_for_is_proposed() -> None:
    assert (network().outcome, network().change) == (Outcome.WARNING, "cluster.interface: ib0")
    assert network(interfaces={"lo": "127.0.0.1", "eth0": "10.0.1.1"}).outcome is Outcome.OK
    assert network(address="10.9.1.1").outcome is Outcome.OK


def test_a_name_that_stands_for_loopback_will_not_work() -> None:
    check = network(address="127.0.1.1", interfaces={"lo": "127.0.0.1", "enp1s0": "10.0.1.1"})
    assert check.outcome is Outcome.PROBLEM
    assert check.change.startswith("cluster.interface: enp1s0")


def test_adapters_that_are_all_down_are_warned_about() -> None:
    def hcas(**adapters: str) -> Check:
        report = make_report(adapters={name.replace("_", ":"): state for name, state in adapters.items()})
        return by_name(check_network(report, make_config(), is_spread=True))["HCAs"]

    assert hcas(mlx5="4: ACTIVE", mlx6="1: DOWN").outcome is Outcome.OK
    assert hcas(mlx5="1: DOWN").outcome is Outcome.WARNING


def storage(
    must_be_shared: bool = False, engine: str = "mock", model: str | None = None, **given: Any
) -> dict[str, Check]:
    config = Config.model_validate({"engine": {"kind": engine}, "model": {"path": model}})
    return by_name(check_storage(make_report(**given), config, "/home/u/state", must_be_shared=must_be_shared))


@pytest.mark.parametrize(
    ("given", "outcome", "words"),
    [
        ({}, Outcome.OK, "/home/u/state (nfs4): written, locked, 1 TB free"),
        ({"state_error": "Permission denied"}, Outcome.PROBLEM, "cannot be written: Permission denied"),
        ({"lock_error": "No locks available"}, Outcome.PROBLEM, "has no locks that work"),
        ({"state_free": 10**6}, Outcome.WARNING, "has 1 MB left"),
        ({"state_kind": "ext4"}, Outcome.WARNING, "usually a disk of one host"),
    ],
)
def test_the_state_directory_has_to_be_written_locked_and_shared(
    given: dict[str, Any], outcome: Outcome, words: str
) -> None:
    check = storage(must_be_shared=True, **given)["state directory"]
    assert (check.outcome, words in check.found) == (outcome, True), check.found
    assert outcome is Outcome.OK or check.change


def test_a_model_has_to_be_named_readable_and_with_weights() -> None:
    assert storage()["model"].outcome is Outcome.SKIPPED
    assert storage(engine="vllm")["model"].outcome is Outcome.PROBLEM
    gone = storage(engine="vllm", model="/m", model_error="No such file or directory: /m")["model"]
    assert (gone.outcome, gone.found) == (Outcome.PROBLEM, "/m: No such file or directory: /m")
    assert "no weights" in storage(engine="vllm", model="/m")["model"].found
    fine = storage(engine="vllm", model="/m", model_bytes=16 * 10**9, model_kind="lustre")["model"]
    assert (fine.outcome, fine.found) == (Outcome.OK, "/m (lustre): 16 GB of weights, readable")


def test_a_scratch_directory_that_cannot_be_written_is_a_problem() -> None:
    assert storage(scratch_error="Read-only file system")["scratch"].outcome is Outcome.PROBLEM
    assert storage(scratch_free=10**6)["scratch"].outcome is Outcome.WARNING


def test_login_nodes_that_end_long_processes_call_for_a_head_in_a_job() -> None:
    checks = by_name(check_limits(make_report(open_files=1024, cpu_seconds=3600), runs_head=True))
    assert checks["open files"].outcome is Outcome.WARNING
    assert checks["CPU time"].change.startswith("--head job")
    assert "CPU time" not in by_name(check_limits(make_report(cpu_seconds=3600), runs_head=False))


def libraries(found: Libraries, *, on_gpus: bool | None, engine: str = "vllm", **given: Any) -> dict[str, Check]:
    config = Config.model_validate({"engine": {"kind": engine}, **given})
    return by_name(check_libraries(found, config, on_gpus=on_gpus))


@pytest.mark.parametrize(
    ("found", "on_gpus", "outcome"),
    [
        (GPU_BUILD, True, Outcome.OK),
        (CPU_BUILD, False, Outcome.OK),
        (CPU_BUILD, True, Outcome.PROBLEM),
        (GPU_BUILD, False, Outcome.PROBLEM),
        (GPU_BUILD, None, Outcome.OK),
        (Libraries(versions={}, torch=GPU_BUILD.torch, nixl=GPU_BUILD.nixl, mpi=GPU_BUILD.mpi), True, Outcome.PROBLEM),
    ],
)
def test_vllm_has_to_be_built_for_what_workers_compute_on(
    found: Libraries, on_gpus: bool | None, outcome: Outcome
) -> None:
    check = libraries(found, on_gpus=on_gpus)["vLLM"]
    assert check.outcome is outcome, check.found
    assert outcome is Outcome.OK or "pip install" in check.change or "environment" in check.change


def test_nixl_is_a_problem_only_where_kv_has_to_move() -> None:
    assert libraries(CPU_BUILD, on_gpus=False)["NIXL"].outcome is Outcome.OK
    assert libraries(CPU_BUILD, on_gpus=False, pools={"workers": 2})["NIXL"].outcome is Outcome.WARNING
    assert libraries(CPU_BUILD, on_gpus=False, pools={"mode": "disaggregated"})["NIXL"].outcome is Outcome.PROBLEM


def test_an_mpi_that_is_needed_has_to_be_there_and_to_take_gpu_memory() -> None:
    over_mpi = {"kv": {"transport": "mpi"}, "cluster": {"kind": "mpi"}}
    assert libraries(CPU_BUILD, on_gpus=False)["MPI"].outcome is Outcome.OK
    assert libraries(CPU_BUILD, on_gpus=False, **over_mpi)["MPI"].outcome is Outcome.PROBLEM
    assert libraries(GPU_BUILD, on_gpus=True, **over_mpi)["MPI"].found.endswith("which takes GPU memory")


def test_gpus_and_the_build_of_torch_are_held_against_each_other() -> None:
    def torch(build: Torch) -> Check:
        libraries = Libraries(versions={}, torch=build, nixl=GPU_BUILD.nixl, mpi=GPU_BUILD.mpi)
        report = make_report(gpus=(A100,), libraries=libraries)
        return by_name(check_gpus(report, make_config("vllm")))["torch"]

    assert torch(GPU_BUILD.torch).outcome is Outcome.OK
    assert "a build for CPUs" in torch(CPU_BUILD.torch).found
    assert "finds no GPU with driver 580.65" in torch(Torch(version="2.13.0", cuda="14.0")).found
    old = Torch(version="2.13.0", cuda="13.0", is_available=True, architectures=["sm_90", "sm_100"])
    assert torch(old).found == "2.13.0 was built for sm_90, sm_100, and the GPUs are sm_80"


def test_a_job_that_asked_for_a_gpu_and_sees_none_says_what_it_sees() -> None:
    report = make_report(is_job=True, gpu_error="nvidia-smi: No devices were found")
    check = by_name(check_gpus(report, make_config("vllm")))["GPUs"]
    assert check.outcome is Outcome.PROBLEM
    assert "No devices were found; CUDA_VISIBLE_DEVICES unset" in check.found


def test_nvidia_smis_lines_are_read() -> None:
    assert parse_gpus("NVIDIA A100-SXM4-80GB, 81920, 580.65, 8.0\nNVIDIA H100, [N/A], 580.65, 9.0\n") == (
        A100,
        Gpu(name="NVIDIA H100", memory_mb=0, driver="580.65", capability="9.0"),
    )


def test_another_version_on_the_nodes_will_not_work() -> None:
    assert check_python(make_report(), make_report()).outcome is Outcome.OK
    check = check_python(make_report(version="0.0.9"), make_report())
    assert check.outcome is Outcome.PROBLEM
    assert check.change.startswith("cluster.slurm.python")


def nodes(result: ProbeResult, num: int) -> dict[str, Check]:
    checks = check_nodes(result, make_config(), make_report(host="login1"), "/state", num)
    return {f"{check.group}/{check.name}": check for check in checks}


def test_the_ways_between_hosts_are_told_one_by_one() -> None:
    good = Visit(report=make_report(), skew_s=0.1, back_error="", peer_errors={"g002": "No route to host"})
    cut_off = Visit(report=make_report(node="g002", doctor_error="10.0.0.1:4711: timed out"))
    checks = nodes(ProbeResult(visits=[good, cut_off], job_id="9"), 2)
    assert checks["probe job/job 9"].found == "2 nodes answered"
    assert checks["node g001/to this host"].outcome is Outcome.OK
    assert checks["node g001/from this host"].outcome is Outcome.OK
    assert checks["node g001/to g002"].outcome is Outcome.PROBLEM
    assert checks["node g002/to this host"].found == "no way from the node to 10.0.0.1:4711: timed out"
    assert checks["node g002/clock"].outcome is Outcome.SKIPPED


@pytest.mark.parametrize(("skew_s", "outcome"), [(0.3, Outcome.OK), (-5.0, Outcome.WARNING), (90.0, Outcome.PROBLEM)])
def test_clocks_that_differ_are_told(skew_s: float, outcome: Outcome) -> None:
    visit = Visit(report=make_report(), skew_s=skew_s, back_error="")
    assert nodes(ProbeResult(visits=[visit], job_id="9"), 1)["node g001/clock"].outcome is outcome


def test_nodes_that_say_nothing_are_a_problem_with_the_end_of_the_log() -> None:
    ended = ProbeResult(job_id="9", error="it ended without an answer: FAILED: exit code 1", log="module: not found")
    check = nodes(ended, 1)["probe job/job 9"]
    assert check.outcome is Outcome.PROBLEM
    assert check.found.endswith("its log ends with: module: not found")
    silent = nodes(ProbeResult(job_id="9", error="it ended without an answer: FAILED: exit code 53"), 1)
    assert "do the nodes see /state?" in silent["probe job/job 9"].change
    queued = nodes(ProbeResult(job_id="9", error="it did not start within 5 s: Priority"), 1)["probe job/job 9"]
    assert (queued.outcome, "--probe-timeout" in queued.change) == (Outcome.SKIPPED, True)


def test_sizes_are_in_units_for_people() -> None:
    assert [size(num) for num in (999, 1_500_000, 2.5e12)] == ["999 B", "1.5 MB", "2.5 TB"]
