"""All kinds of faults, by name."""

from __future__ import annotations

from tests.chaos.faults import clock, connections, disk, processes, slurm
from tests.chaos.faults.fault import Fault

FAULTS: dict[str, Fault] = {
    fault.name: fault for fault in (*processes.FAULTS, *slurm.FAULTS, *connections.FAULTS, *disk.FAULTS, *clock.FAULTS)
}
