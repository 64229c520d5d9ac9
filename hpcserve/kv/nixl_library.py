"""NIXL as a library: found, imported without crashing the process at its end, and told to be quiet."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any

from hpcserve.errors import KVError


def load_nixl() -> Any:
    """Return the module with `nixl_agent`. Raises `KVError` where NIXL is not installed."""
    load_system_libnl()
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
    os.environ.setdefault("UCX_LOG_LEVEL", "error")
    try:
        from nixl import _api
    except (ImportError, RuntimeError, OSError) as err:
        raise KVError(f"no NIXL here: {err}; install hpcserve[cpu] or hpcserve[gpu], or use kv.transport: mpi") from err
    return _api


def load_system_libnl() -> None:
    """Load the system's libnl before NIXL's.

    NIXL's wheel brings its own libnl, and its libibverbs may load the system's too. With the system's loaded last, the
    finalizers of one run on the other's data and the process ends with a segmentation fault.
    """
    for name in ("libnl-3.so.200", "libnl-route-3.so.200"):
        with suppress(OSError):
            ctypes.CDLL(name)
