"""Chooses workers. Pure: no clock, no I/O, no asyncio, no Dask; the simulator runs the same objects in virtual time."""

from hpcserve.router.router import Router
from hpcserve.router.stats import RouterStats, WorkerLoad

__all__ = ["Router", "RouterStats", "WorkerLoad"]
