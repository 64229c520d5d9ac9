"""What bytes of KV go through between two nodes, as far as the environment chooses it; for messages to people."""

from __future__ import annotations

import os
from collections.abc import Mapping

_UCX = ("UCX_TLS", "UCX_NET_DEVICES")
_MPI = ("OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_btl_tcp_if_include", "FI_PROVIDER")


def interface_name(kind: str, *, is_same_node: bool, environ: Mapping[str, str] | None = None) -> str:
    """Return the settings that choose the interface; `kind` is that of a transport."""
    environ = os.environ if environ is None else environ
    names = _UCX if kind == "nixl" else (*_MPI, *_UCX)
    chosen = [f"{name}={environ[name]}" for name in names if name in environ]
    if is_same_node:
        chosen.insert(0, "shared memory")
    return ", ".join(chosen) or "the interface that the library chose"
