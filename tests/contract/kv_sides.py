"""Starts ends of a transport in processes of their own, and talks to them: `started(kind)`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ANSWER_TIMEOUT_S = 60.0
KINDS = ("nixl", "mpi", "courier")


class Side:
    """A process with one end. Calls are those of `kv_side.Side`."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(ANSWER_TIMEOUT_S)
        self._told, self._answers = connection.makefile("w"), connection.makefile("r")
        hello = json.loads(self._answers.readline())
        self.pid: int = hello["pid"]
        self.rank: int = hello["rank"]
        self.courier_socket: str = hello["courier"]
        self.courier = 0  # its process, where there is one
        self.description = ""

    def open(self, *sizes: int, seed: int, timeout_s: float = 3.0) -> str:
        self.description = self.call("open", sizes=sizes, seed=seed, timeout_s=timeout_s)
        return self.description

    def call(self, op: str, **arguments: Any) -> Any:
        self.tell(op, **arguments)
        return self.answer()

    def tell(self, op: str, **arguments: Any) -> None:
        print(json.dumps([op, arguments]), file=self._told, flush=True)

    def answer(self) -> Any:
        answer = json.loads(self._answers.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def pull(self, peer: Side, *copies: tuple[int, int, int, int, int], note: str = "") -> int:
        return int(self.call("pull", peer=peer.description, copies=copies, note=note))

    def outcome(self, pull: int, timeout_s: float = 20.0) -> str | None:
        errors, _ = self.call("wait", pulls=[pull], timeout_s=timeout_s)
        return errors[0]  # type: ignore[no-any-return]

    def sums(self, *ranges: tuple[int, int, int]) -> list[int]:
        return self.call("sums", ranges=ranges)  # type: ignore[no-any-return]

    def close(self) -> None:
        for stream in (self._told, self._answers):
            with suppress(OSError):  # what was not read by a process that is gone
                stream.close()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@contextmanager
def started(kind: str, directory: Path, num: int = 2, **environ: str) -> Iterator[list[Side]]:
    """Start ends, in the order of their ranks; end them, and whatever they started, whatever happened."""
    address = str(directory / "sides")
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(address)
        listening.listen()
        listening.settimeout(ANSWER_TIMEOUT_S)
        stack.callback(os.unlink, address)
        programs = [[sys.executable, "-m", "tests.contract.kv_side", kind, address]] * num
        environments: list[dict[str, str]] = [{}] * num
        if kind == "mpi":
            programs, environments = [[*mpirun(num), *programs[0]]], [{}]
        elif kind == "courier":
            sockets = [str(directory / f"courier{index}") for index in range(num)]
            environments = [{"COURIER_SOCKET": each} for each in sockets]
            couriers = [*mpirun(num), sys.executable, "-m", "hpcserve.kv.courier_rank", *sockets]
            launcher = stack.enter_context(_running(couriers, environ, ends_itself=False))
            until(lambda: all(os.path.exists(each) for each in sockets), ANSWER_TIMEOUT_S)
        for program, own in zip(programs, environments, strict=True):
            stack.enter_context(_running(program, environ | own))
        sides: list[Side] = []
        stack.callback(_end, sides)
        for _ in range(num):
            connection, _ = listening.accept()
            stack.enter_context(connection)
            sides.append(Side(connection))
            stack.callback(sides[-1].close)
        sides.sort(key=lambda side: side.rank)
        if kind == "courier":
            for side in sides:
                side.courier = _rank_pid(launcher, sockets.index(side.courier_socket))
        yield sides


def mpirun(num: int) -> list[str]:
    """A world that goes on when a rank is killed."""
    root = ["--allow-run-as-root"] if os.getuid() == 0 else []
    return [shutil.which("mpirun") or "mpirun", *root, "--oversubscribe", "--enable-recovery", "-n", str(num)]


@contextmanager
def _running(command: list[str], environ: dict[str, str], *, ends_itself: bool = True) -> Iterator[int]:
    environ = os.environ | {"OMP_NUM_THREADS": "1", "OMPI_MCA_orte_abort_on_non_zero_status": "0"} | environ
    process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process.pid
        if ends_itself:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _rank_pid(launcher: int, rank: int) -> int:
    ranks = psutil.Process(launcher).children()
    return next(each.pid for each in ranks if each.environ().get("OMPI_COMM_WORLD_RANK") == str(rank))


def _end(sides: list[Side]) -> None:
    for side in sides:
        with suppress(ProcessLookupError):
            side.signal(signal.SIGCONT)
        with suppress(OSError, ValueError):
            side.tell("end")


def until(is_true: Callable[[], bool], timeout_s: float) -> None:
    """Wait for something that nobody tells of."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.01)
