"""Who runs the sides of `bench kv`: two children of this process, or the ranks that a launcher started.

A `Remote` calls a `KvSide` in another process. Between calls nobody polls without pause: the machine is being measured.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol

from hpcserve.bench.kv_side import BenchKind, KvSide
from hpcserve.errors import KVError

_LOOK_S = 200e-6
_ANSWER_TIMEOUT_S = 600.0
_COMMAND, _ANSWER = 31_001, 31_002  # tags: far from those of endpoints, and no data tag is in use beside them


class Remote(Protocol):
    """A side somewhere. `ask` and `answer` come in turns, so that two sides can work at once."""

    rank: int

    def ask(self, method: str, *arguments: object) -> None:
        """Have it begin."""
        ...

    def answer(self) -> Any:
        """Return what the method returned. Raises `KVError` for what it raised, and when the process is gone."""
        ...


def call(remote: Remote, method: str, *arguments: object) -> Any:
    """Ask and wait."""
    remote.ask(method, *arguments)
    return remote.answer()


# --- children ----------------------------------------------------------------------------------------------------


class _Child:
    def __init__(self, rank: int, connection: Connection) -> None:
        self.rank = rank
        self._connection = connection

    def ask(self, method: str, *arguments: object) -> None:
        self._connection.send((method, arguments))

    def answer(self) -> Any:
        try:
            if not self._connection.poll(_ANSWER_TIMEOUT_S):
                raise KVError(f"process {self.rank} did not answer within {_ANSWER_TIMEOUT_S:g} s")
            return _unwrap(self._connection.recv())
        except (EOFError, OSError) as err:
            raise KVError(f"process {self.rank} ended unexpectedly") from err


@contextmanager
def children(kind: BenchKind, timeout_s: float, num: int = 2) -> Iterator[list[Remote]]:
    """Start processes with a side each; end them."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        remotes: list[Remote] = []
        for rank in range(num):
            ours, theirs = context.Pipe()
            process = context.Process(target=_live, args=(kind, rank, timeout_s, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(process.terminate)
            stack.callback(process.join, 10.0)
            stack.callback(ours.close)
            remotes.append(_Child(rank, ours))
        yield remotes


def _live(kind: BenchKind, rank: int, timeout_s: float, connection: Connection) -> None:
    side = KvSide(kind, rank, timeout_s)
    try:
        while True:
            method, arguments = connection.recv()
            connection.send(_wrapped(getattr(side, method), arguments))
    except (EOFError, OSError):
        side.close()


# --- ranks -------------------------------------------------------------------------------------------------------


class _Rank:
    def __init__(self, rank: int, world: Any) -> None:
        self.rank = rank
        self._comm = world.comm

    def ask(self, method: str, *arguments: object) -> None:
        self._comm.send((method, arguments), self.rank, _COMMAND)

    def answer(self) -> Any:
        return _unwrap(_receive(self._comm, self.rank, _ANSWER))


class _Here:
    """The coordinator's own side."""

    def __init__(self, side: KvSide) -> None:
        self.rank = 0
        self._side = side
        self._asked: tuple[str, tuple[object, ...]] = ("", ())

    def ask(self, method: str, *arguments: object) -> None:
        self._asked = (method, arguments)

    def answer(self) -> Any:
        return getattr(self._side, self._asked[0])(*self._asked[1])


@contextmanager
def ranks(kind: BenchKind, timeout_s: float) -> Iterator[list[Remote] | None]:
    """Yield a side on each rank to rank 0. The others do what they are told, and then yield None. Ends MPI."""
    from hpcserve.kv.mpi_world import join_world

    world = join_world()
    side = KvSide(kind, world.rank, timeout_s)
    if world.rank:
        _obey(side, world.comm)
        yield None
    else:
        others: list[Remote] = [_Rank(rank, world) for rank in range(1, world.size)]
        try:
            yield [_Here(side), *others]
        finally:
            for remote in others:
                remote.ask("end")
            side.close()
    world.mpi.Finalize()


def _obey(side: KvSide, comm: Any) -> None:
    while True:
        method, arguments = _receive(comm, 0, _COMMAND)
        if method == "end":
            side.close()
            return
        comm.send(_wrapped(getattr(side, method), arguments), 0, _ANSWER)


def _receive(comm: Any, rank: int, tag: int) -> Any:
    while not comm.Iprobe(rank, tag):
        time.sleep(_LOOK_S)
    return comm.recv(source=rank, tag=tag)


def _wrapped(method: Callable[..., object], arguments: tuple[object, ...]) -> tuple[str, object]:
    try:
        return "", method(*arguments)
    except Exception as err:  # noqa: BLE001 - the edge of the process: the coordinator raises it
        return getattr(err, "message", repr(err)), None


def _unwrap(answer: tuple[str, Any]) -> Any:
    error, value = answer
    if error:
        raise KVError(error)
    return value
