"""What moves KV between processes must do: `KVTransport`. `tests/contract/test_kv_transport.py` is its executable form.

A transport copies byte ranges out of a peer's registered memory into our own. It knows neither tokens nor blocks nor
leases: who may read what, and for how long, is the connector's business (`engine/vllm`, `engine/mock`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

TransportKind = Literal["nixl", "mpi"]


@dataclass(frozen=True, slots=True)
class Region:
    """Memory that is read from, or written to by a pull. It stays mapped until the transport is closed."""

    address: int  # in this process
    size: int  # bytes
    device: int | None = None  # CUDA device; None: the host's memory


class Copy(NamedTuple):
    """One range of a peer's region into one of ours. Ranges of one pull do not overlap at the destination."""

    remote_region: int  # index in what the peer registered
    remote_offset: int  # bytes
    local_region: int
    local_offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A pull that is over."""

    pull: int
    error: str | None = None  # None: all bytes are there


@dataclass(frozen=True, slots=True)
class Abilities:
    """How bytes travel here; said in logs, `bench kv` and status."""

    path: str  # such as "UCX", "Open MPI 4.1.4", "Open MPI 4.1.4 through a courier"
    is_cuda_direct: bool = False  # the fabric reads device memory; else it is staged in pinned host memory
    warnings: tuple[str, ...] = ()


class KVTransport(Protocol):
    """One process's end. Called from one thread; nothing but `close` blocks, and that is bounded."""

    @property
    def kind(self) -> TransportKind:
        """Which implementation this is."""
        ...

    @property
    def abilities(self) -> Abilities:
        """How bytes travel."""
        ...

    def register(self, regions: Sequence[Region]) -> None:
        """Make memory readable for peers and writable for pulls. Once, before anything else. Raises `KVError`."""
        ...

    def describe(self) -> bytes:
        """Return what a peer needs to know to pull from here; opaque, at most a few kB, travels in handles.

        Ask each time: it is another one after the transport had to start anew, and old ones fail from then on.
        """
        ...

    def pull(self, peer: bytes, copies: Sequence[Copy], *, note: bytes = b"") -> int:
        """Start copying from the peer that `peer` describes, and return the pull's id.

        The peer hears `note` (unless empty) when it need not keep the ranges any more: all is read, or the pull failed.
        A peer that cannot be reached, or is silent for the transport's time limit, fails the pull; it never raises.
        """
        ...

    def cancel(self, pull: int) -> None:
        """Want a pull no more. It still shows up in `poll`, and only then is its destination free for other use."""
        ...

    def notify(self, peer: bytes, note: bytes) -> None:
        """Tell a peer something without pulling. Best effort: a dead peer hears nothing and nothing is raised."""
        ...

    def poll(self) -> tuple[list[Finished], list[bytes]]:
        """Return pulls that are over and notes that arrived since the last call. Takes microseconds."""
        ...

    def close(self) -> None:
        """Let go of the memory: when it returns nothing of ours is read or written any more. Safe to call twice."""
        ...
