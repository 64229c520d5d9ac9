"""What launchers tell their ranks, as Open MPI 4.1 and Slurm 22.05 were seen to."""

import pytest

from hpcserve.cluster.launcher import Devices, Launch, node_name, read_devices, read_launch, without_launcher

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "5",
    "OMPI_MCA_ess_base_jobid": "233701377",
    "PMIX_NAMESPACE": "233701377",
    "PMIX_RANK": "2",
}
BATCH = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURMD_NODENAME": "gpu1"}
SRUN = BATCH | {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_ID": "1", "SLURM_LOCALID": "0"}


def test_nothing_started_a_process_of_its_own() -> None:
    assert read_launch({}) is None


def test_a_batch_script_is_no_rank() -> None:
    assert read_launch(BATCH) is None


def test_mpirun_and_srun_are_understood() -> None:
    assert read_launch(OPEN_MPI) == Launch(2, 5, "mpirun (Open MPI)", "233701377")
    assert read_launch(SRUN) == Launch(3, 5, "srun", "17-1")
    assert read_launch({"PMI_RANK": "1", "PMI_SIZE": "3"}) == Launch(1, 3, "mpirun (PMI)", "0")


def test_in_a_job_mpirun_counts_and_all_its_ranks_have_the_same_label() -> None:
    first_node, another_node = BATCH | OPEN_MPI, SRUN | OPEN_MPI
    labels = {read_launch(environ).label for environ in (first_node, another_node)}  # type: ignore[union-attr]
    assert labels == {"17-233701377"}


def test_a_job_that_was_requeued_is_another_start() -> None:
    labels = [read_launch(environ).label for environ in (SRUN, SRUN | {"SLURM_RESTART_COUNT": "1"})]  # type: ignore[union-attr]
    assert labels == ["17-1", "17-1-1"]


def test_a_label_fits_a_deployments_name() -> None:
    launch = read_launch({"PMI_RANK": "1", "PMI_SIZE": "3", "PMIX_NAMESPACE": "prterun-Host_3.site@1" * 3})
    assert launch is not None
    assert len(launch.label) <= 30
    assert set(launch.label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not launch.label.startswith("-")


def test_children_do_not_take_themselves_for_ranks() -> None:
    environ = without_launcher(SRUN | OPEN_MPI | {"PATH": "/bin", "HPCSERVE_STATE_DIR": "/s"})
    assert read_launch(environ) is None
    assert {"PATH", "HPCSERVE_STATE_DIR", "SLURM_JOB_ID", "SLURMD_NODENAME"} <= set(environ)
    assert not [name for name in environ if name.startswith(("OMPI", "PMI"))]


@pytest.mark.parametrize(
    ("ids", "num", "shares"),
    [
        (("0", "1", "2", "3"), 2, ["0,1", "2,3"]),
        (("0", "1", "2"), 2, ["0", "1"]),
        (("GPU-a", "GPU-b"), 2, ["GPU-a", "GPU-b"]),
        ((), 3, [None, None, None]),
    ],
)
def test_gpus_of_a_node_are_shared_out(ids: tuple[str, ...], num: int, shares: list[str | None]) -> None:
    devices = Devices("CUDA_VISIBLE_DEVICES", ids, is_own=False)
    assert [devices.share(index, num) for index in range(num)] == shares


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match="2 GPUs for 3 workers"):
        Devices("CUDA_VISIBLE_DEVICES", ("0", "1"), is_own=False).share(0, 3)


def test_gpus_that_the_launcher_gave_to_a_rank_alone_stay_as_they_are() -> None:
    devices = read_devices({"CUDA_VISIBLE_DEVICES": "2", "SLURM_GPUS_PER_TASK": "1"})
    assert devices.share(3, 4) is None


def test_an_empty_variable_means_no_gpus() -> None:
    assert read_devices({"CUDA_VISIBLE_DEVICES": ""}).ids == ()
    assert read_devices({"ROCR_VISIBLE_DEVICES": "0,1"}) == Devices("ROCR_VISIBLE_DEVICES", ("0", "1"), is_own=False)


def test_slurms_name_of_the_node_counts() -> None:
    assert node_name({"SLURMD_NODENAME": "gpu7"}) == "gpu7"
    assert node_name({})
