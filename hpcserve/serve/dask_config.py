"""How the head's Dask scheduler is configured, where Dask's defaults do not fit."""

DASK_CONFIG = {
    "distributed.scheduler.worker-ttl": "30s",
    "distributed.scheduler.dashboard.status.task-stream-length": 1000,
    "distributed.scheduler.work-stealing": False,  # `head/units.py` says where tasks run
    "distributed.scheduler.allowed-failures": 1,  # a unit that was lost twice is suspected: see `batch/dask_service.py`
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.admin.tick.interval": "1s",  # its own 20 ms are 1 % of a core
    "distributed.admin.low-level-log-length": 10,  # messages are kept whole, and have prompts
    "distributed.admin.tick.limit": "10s",
    "distributed.admin.system-monitor.interval": "5s",  # for Dask's own pages; reads a dozen files
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.comm.timeouts.connect": "10s",
}
