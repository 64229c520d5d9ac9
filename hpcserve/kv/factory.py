"""Which transport a name stands for. Imports NIXL or MPI only when it is wanted."""

from __future__ import annotations

from hpcserve.kv.transport import KVTransport, TransportKind

TIMEOUT_S = 30.0
"""How long a peer may be silent before a pull from it fails. Leases on KV must last longer."""


def open_transport(kind: TransportKind, *, timeout_s: float = TIMEOUT_S, strict: bool = False) -> KVTransport:
    """Return this process's end, with nothing registered yet. Raises `KVError` where the transport is missing.

    `strict` refuses memory that would have to be staged. For MPI every rank must have called `mpi_world.join_world`.
    """
    if kind == "nixl":
        from hpcserve.kv.nixl import NixlTransport

        return NixlTransport(timeout_s=timeout_s, strict=strict)
    from hpcserve.kv.mpi import MpiTransport

    return MpiTransport(timeout_s=timeout_s, strict=strict)
