"""What one host is like: collected there, judged elsewhere (`host_checks.py`). Looks; changes nothing that stays."""

from __future__ import annotations

import os
import resource
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from hpcserve import __version__
from hpcserve.doctor.libraries import Gpu, Libraries, find_gpus, find_libraries

_INFINIBAND = Path("/sys/class/infiniband")


class ProbeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is asked to look at. Written by the doctor into a private file."""

    host: str = ""  # where the doctor listens
    port: int = 0
    token: str = ""  # to be shown there
    state_root: str
    interface: str | None = None
    scratch: str | None = None  # may hold variables of the host
    model: str | None = None
    with_libraries: bool = True


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found on one host. An error is empty where there was none."""

    node: str  # Slurm's name for it, else the host's
    host: str
    version: str  # of hpcserve
    python: str
    python_version: str
    now: float  # Unix time
    num_cpus: int
    memory_mb: int
    open_files: int  # hard limit; 0: none
    cpu_seconds: int  # that a process may use; 0: no limit
    interfaces: dict[str, str] = {}  # IPv4 addresses by name
    address: str = ""  # that a worker here would announce
    address_error: str = ""
    adapters: dict[str, str] = {}  # of InfiniBand and RoCE: state, by device
    scratch: str = ""
    scratch_error: str = ""
    scratch_free: int = 0  # bytes
    state_error: str = ""
    state_free: int = 0  # bytes
    state_kind: str = ""  # of its file system
    lock_error: str = ""
    model_error: str = ""
    model_bytes: int = 0  # of weights
    model_kind: str = ""  # of its file system
    is_job: bool = False
    visible_gpus: str | None = None  # CUDA_VISIBLE_DEVICES
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""
    libraries: Libraries | None = None  # None: not asked for
    port: int = 0  # that it listens on
    doctor_error: str = ""  # why the doctor cannot be reached from it


def look_around(order: ProbeOrder) -> HostReport:
    """Return what this host is like. Takes some seconds where libraries are asked for: they are imported elsewhere."""
    from hpcserve.doctor.storage import look_at_model, look_at_scratch, look_at_state

    with ThreadPoolExecutor(max_workers=2) as pool:
        libraries = pool.submit(find_libraries) if order.with_libraries else None
        gpus, gpu_error = find_gpus()
        address, address_error = _address(order.interface)
        return HostReport(
            node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            host=socket.gethostname(),
            version=__version__,
            python=sys.executable,
            python_version=".".join(map(str, sys.version_info[:3])),
            now=time.time(),
            num_cpus=len(os.sched_getaffinity(0)),
            memory_mb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
            open_files=_limit(resource.RLIMIT_NOFILE),
            cpu_seconds=_limit(resource.RLIMIT_CPU),
            interfaces=interfaces(),
            address=address,
            address_error=address_error,
            adapters=_adapters(),
            is_job="SLURM_JOB_ID" in os.environ,
            visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
            gpus=gpus,
            gpu_error=gpu_error,
            **look_at_scratch(os.path.expandvars(order.scratch or "") or tempfile.gettempdir()),
            **look_at_state(Path(order.state_root)),
            **look_at_model(Path(order.model) if order.model else None),
            libraries=libraries.result() if libraries else None,
        )


def interfaces() -> dict[str, str]:
    """Return the IPv4 address of each network interface that has one."""
    import psutil

    found = psutil.net_if_addrs().items()
    return {name: each.address for name, all_of in found for each in all_of if each.family == socket.AF_INET}


def _address(interface: str | None) -> tuple[str, str]:
    if interface is not None:
        address = interfaces().get(interface, "")
        return address, "" if address else f"no interface {interface!r} with an IPv4 address"
    try:
        return socket.gethostbyname(socket.gethostname()), ""
    except OSError as err:
        return "", f"this host's name stands for no address: {err.strerror or err}"


def _adapters() -> dict[str, str]:
    """Return the state of each adapter's first port, such as "4: ACTIVE"."""
    if not _INFINIBAND.is_dir():
        return {}
    return {each.name: _read(each / "ports" / "1" / "state") for each in sorted(_INFINIBAND.iterdir())}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"


def _limit(which: int) -> int:
    _, hard = resource.getrlimit(which)
    return 0 if hard == resource.RLIM_INFINITY else hard
