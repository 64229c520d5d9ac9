"""`hpcserve bench kv`: what it measures, what it refuses, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from hpcserve.bench.kv_pairs import KvPlan, measure_pairs
from hpcserve.bench.kv_side import Introduction, Timing
from hpcserve.cli.bench_kv import command
from hpcserve.cluster.mpirun import mpirun_command

COMMAND = [sys.executable, "-c", "from hpcserve.cli import main; main(prog_name='hpcserve')", "bench", "kv"]
real = pytest.mark.real
has_mpi = shutil.which("mpirun") is not None and importlib.util.find_spec("mpi4py") is not None
has_nixl = importlib.util.find_spec("nixl") is not None


class Rank:
    """A side that answers what it is told to."""

    def __init__(self, rank: int, node: str, pulls: Timing) -> None:
        self.rank = rank
        self._node = node
        self._pulls = pulls
        self._asked: tuple[Any, ...] = ()
        self.pulled_from: list[bytes] = []

    def ask(self, method: str, *arguments: object) -> None:
        self._asked = (method, *arguments)

    def answer(self) -> Any:
        method, *arguments = self._asked
        if method == "open":
            description = b"%d" % self.rank
            return Introduction(description, self._node, 1, "a string", (), dict.fromkeys(arguments[0], 0))
        if method == "pull":
            self.pulled_from.append(arguments[0])
        return {"memcpy": 0.001, "pull": self._pulls}[method]


GOOD, SLOW = Timing(0.001, is_intact=True), Timing(1.0, is_intact=True)
BAD = Timing(0.0, is_intact=False, error="what arrived is not what was sent")


def test_every_rank_pulls_from_every_other() -> None:
    ranks = [Rank(number, f"node{number}", GOOD) for number in range(3)]
    report = measure_pairs(KvPlan(transport="nixl", sizes=(1000, 10**6)), ranks, lambda _: None)
    assert len(report.rows) == 12
    assert {each for rank in ranks for each in rank.pulled_from} == {b"0", b"1", b"2"}
    assert ranks[1].pulled_from == [b"0", b"0", b"2", b"2"]
    assert report.rows[1].gb_per_s == pytest.approx(1.0)
    assert report.refused() == []


def test_a_pair_that_corrupts_is_named_by_its_nodes() -> None:
    ranks = [Rank(0, "east", GOOD), Rank(1, "west", BAD)]
    report = measure_pairs(KvPlan(transport="nixl", sizes=(1000, 2000)), ranks, lambda _: None)
    (sentence,) = report.refused()
    assert "rank 1 on west from rank 0 on east" in sentence
    assert "1000 bytes: what arrived is not what was sent" in sentence


def test_a_pair_is_too_slow_only_if_it_is_at_all_sizes() -> None:
    ranks = [Rank(0, "east", GOOD), Rank(1, "west", SLOW)]
    plan = KvPlan(transport="nixl", sizes=(1000, 10**6), min_gb_per_s=0.5)
    (sentence,) = measure_pairs(plan, ranks, lambda _: None).refused()
    assert "0.001 GB/s at best, and the floor is 0.5" in sentence


@pytest.mark.parametrize("sizes", ["", "0", "64x", "k", "1,,2", "-5"])
def test_sizes_that_are_none_are_refused(sizes: str) -> None:
    done = CliRunner().invoke(command, ["--sizes", sizes])
    assert done.exit_code == 2
    assert "no size in bytes" in done.output


def _bench(*args: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*launcher, *COMMAND, "--sizes", "4096,1m", "--repeats", "2", *args],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0 or "error:" in done.stderr, done.stderr
    return done


@real
@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["nixl", "mpi", "courier"])
def test_two_processes_of_this_machine_are_measured(transport: str) -> None:
    if not (has_nixl if transport == "nixl" else has_mpi):
        pytest.skip(f"no {transport}")
    done = _bench("--transport", transport, "--json")
    report = json.loads(done.stdout)
    assert [(row["puller"], row["source"], row["size"]) for row in report["rows"]] == [
        (puller, 1 - puller, size) for puller in (0, 1) for size in (4096, 1 << 20)
    ]
    for row in report["rows"]:
        assert row["error"] is None
        assert row["gb_per_s"] > 0
        assert row["memcpy_gb_per_s"] > 0
        assert (row["plain_gb_per_s"] is None) is (transport == "nixl")
        assert "shared memory" in row["interface"]


@real
@pytest.mark.timeout(120)
@pytest.mark.skipif(not has_mpi, reason="no MPI")
def test_all_ranks_of_a_launcher_are_measured_and_a_floor_fails_them() -> None:
    done = _bench("--transport", "mpi", "--block", "1000", "--min-gb-per-s", "1e6", launcher=tuple(mpirun_command(3)))
    assert done.returncode == 1
    assert done.stderr.count("and the floor is 1e+06") == 6
    assert "GB/s" in done.stdout
