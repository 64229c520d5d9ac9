"""Looks at the host that the doctor runs on, as the probe looks at a compute node."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hpcserve.config.models import Config
from hpcserve.doctor.host import HostReport, ProbeOrder, look_around
from hpcserve.doctor.software_checks import needs_libraries


async def look_here(config: Config, root: Path) -> HostReport:
    """Return what this host is like; takes some seconds, as libraries are imported (in other processes)."""
    scratch, model = config.cluster.scratch, config.model.path
    order = ProbeOrder(
        state_root=str(root),
        interface=config.cluster.interface,
        scratch=str(scratch) if scratch else None,
        model=str(model) if model else None,
        with_libraries=needs_libraries(config),
    )
    return await asyncio.to_thread(look_around, order)
