"""What the head and the ranks of an allocation say to each other, over a channel.

Rank to head: the call "join" with a `Hello`; the message "ended" with an `Ended`.
Head to rank: the call "start" with an `Order`, answered by a `Started`; the messages "end" (a `Signal`) and "leave".
Where the head listens is in the state directory, in `RENDEZVOUS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from hpcserve.state import StateDir

RENDEZVOUS = "ranks.json"


class Rendezvous(msgspec.Struct, frozen=True, kw_only=True):
    """Where ranks report. No address: there is nothing to report to any more, or there will never be."""

    label: str  # of the start that it is for; a file of an earlier one is passed over
    address: str | None  # tls://host:port


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that runs on a rank."""

    job_id: str
    started_at: float  # Unix seconds


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The agent ended."""

    job_id: str
    reason: str  # in the words of `JobView`


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank says of itself when it reports, for the first time or after its connection broke."""

    rank: int
    node: str
    host: str
    pid: int
    device_variable: str
    devices: tuple[str, ...]
    has_own_devices: bool
    running: Running | None = None
    ended: Ended | None = None  # since the head last heard it


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Start this agent."""

    job_id: str
    module: str  # python -m
    args: tuple[str, ...]
    environment: dict[str, str]  # put over the rank's
    threads: int | None  # of the engine; None: the rank's share of the cores
    workers_on_node: int
    log: str  # path that its output is appended to
    is_inside: bool = False  # in the rank's own process, which is one of MPI


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The agent runs."""

    pid: int
    started_at: float  # Unix seconds


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """End the agent: have it drain, or kill all that it started."""

    job_id: str
    how: Literal["drain", "kill"]


def write_rendezvous(state: StateDir, rendezvous: Rendezvous) -> None:
    """Tell the ranks where to report."""
    state.write_private(state.path / RENDEZVOUS, msgspec.json.encode(rendezvous))


def read_rendezvous(path: Path) -> Rendezvous | None:
    """Return what the head wrote into a state directory; None while there is nothing."""
    try:
        return msgspec.json.decode((path / RENDEZVOUS).read_bytes(), type=Rendezvous)
    except (FileNotFoundError, msgspec.MsgspecError):  # not yet there, or another version's
        return None
