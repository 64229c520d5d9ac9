"""What processes cost, read from /proc: CPU seconds of all their threads, and memory. No script."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATE, _PARENT, _USER, _SYSTEM = 0, 1, 11, 12  # after the command, proc(5)


def cpu_s(pids: Iterable[int]) -> float:
    """Return user and system seconds of live processes since they started."""
    return sum(_cpu_s(f"/proc/{pid}/stat") for pid in pids)


def thread_cpu_s(pid: int) -> dict[str, float]:
    """Return the seconds of each thread, by its name and id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        found[f"{name}:{task.name}"] = _cpu_s(f"{task}/stat")
    return found


def rss_mb(pids: Iterable[int]) -> float:
    """Return the memory that is resident now."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * _PAGE_BYTES / 1e6


def descendants(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(_fields(str(path))[_PARENT])
        except OSError:
            continue
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def _cpu_s(path: str) -> float:
    fields = _fields(path)
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_PER_S


def _fields(path: str) -> list[str]:
    return Path(path).read_text().rpartition(")")[2].split()
