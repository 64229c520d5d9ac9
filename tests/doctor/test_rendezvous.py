"""Probes as processes of this machine, and the doctor's end that they call."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import msgspec
import pytest

from hpcserve.doctor.host import ProbeOrder
from hpcserve.doctor.probe_job import render_probe
from hpcserve.doctor.rendezvous import Rendezvous, Visit
from tests.doctor.conftest import make_config

HOST = "127.0.0.1"


def write_order(directory: Path, port: int, token: str) -> Path:
    order = ProbeOrder(
        host=HOST, port=port, token=token, state_root=str(directory), interface="lo", with_libraries=False
    )
    path = directory / "order"
    path.write_bytes(msgspec.json.encode(order))
    return path


async def probe(order: Path, node: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "hpcserve.doctor.probe", str(order))
    return await asyncio.create_subprocess_exec(*command, env=os.environ | {"SLURMD_NODENAME": node})


async def meet(meeting: Rendezvous, order: Path, *nodes: str) -> list[Visit]:
    """Run probes to their end and return what they said."""
    ended = asyncio.Event()
    probes = [await probe(order, node) for node in nodes]
    try:
        visits = asyncio.create_task(meeting.wait(ended))
        async with asyncio.timeout(30):
            assert [await each.wait() for each in probes] == [0] * len(probes)
            ended.set()
            return await visits
    finally:
        for each in probes:
            if each.returncode is None:
                each.kill()
                await each.wait()
        await meeting.close()


async def test_nodes_call_are_called_back_and_call_each_other(tmp_path: Path) -> None:
    meeting = Rendezvous(tmp_path, 2)
    port = await meeting.open(HOST)
    first, second = await meet(meeting, write_order(tmp_path, port, meeting.token), "g001", "g002")
    assert (first.report.node, second.report.node) == ("g001", "g002")
    assert (first.back_error, first.peer_errors, second.peer_errors) == ("", {"g002": ""}, {"g001": ""})
    assert first.skew_s is not None
    assert abs(first.skew_s) < 5
    assert list(tmp_path.glob("*.json")) == []


async def test_a_node_that_cannot_call_leaves_a_file_with_the_reason(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind((HOST, 0))
        order = write_order(tmp_path, closed.getsockname()[1], "token")
        (visit,) = await meet(Rendezvous(tmp_path, 1), order, "g001")
    assert visit.report.doctor_error.endswith("Connection refused")
    assert (visit.skew_s, visit.back_error) == (None, None)


async def test_a_call_without_the_token_is_no_nodes(tmp_path: Path) -> None:
    meeting = Rendezvous(tmp_path, 1)
    port = await meeting.open(HOST)
    assert await meet(meeting, write_order(tmp_path, port, "guessed"), "g001") == []


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b"[]\n", b'{"token": 7}\n'])
async def test_what_is_no_call_of_a_probe_is_passed_over(tmp_path: Path, said: bytes) -> None:
    meeting = Rendezvous(tmp_path, 1)
    reader, writer = await asyncio.open_connection(HOST, await meeting.open(HOST))
    writer.write(said)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    ended = asyncio.Event()
    ended.set()
    assert await meeting.wait(ended) == []
    await meeting.close()


def test_the_probes_job_asks_for_what_a_workers_would_but_little_of_it() -> None:
    config = make_config(
        partition="gpu", account="proj-0042", gpus=4, gpu_type="a100", cores=32, memory="256GB", walltime="2-00:00:00",
        modules=["gcc/12.3"], prologue=["ulimit -n 65536"], python="/env/bin/python", exclusive=True,
        extra_directives=["--exclusive", "--licenses=fs:1", "#SBATCH --mail-type=FAIL"],
    )  # fmt: skip
    script = render_probe(config, Path("/state/.doctor-1"), 2, with_gpu=True)
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "--job-name=doctor.hpcserve",
        '--output="/state/.doctor-1/log"',
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=2",
        "--time=5",
        "--no-requeue",
        "--mem=8G",
        "--gres=gpu:a100:1",
        "--partition=gpu",
        "--account=proj-0042",
        "--licenses=fs:1",
    ]
    assert "module load gcc/12.3 || exit 1\nulimit -n 65536\n" in script
    assert (
        "exec srun --ntasks=2 --ntasks-per-node=1 /env/bin/python -m hpcserve.doctor.probe /state/.doctor-1/order"
        in script
    )


def test_lines_that_a_site_refuses_are_left_out_of_the_probes_job() -> None:
    script = render_probe(make_config(memory="4GB", skip_directives=["--mem"]), Path("/d"), 1, with_gpu=False)
    assert "--mem" not in script
    assert "gpu" not in script
    assert "srun" not in script
