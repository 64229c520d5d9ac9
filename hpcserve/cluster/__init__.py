"""Where workers come from: processes of this machine, or Slurm jobs. Launches, watches and ends; decides nothing."""

from hpcserve.cluster.factory import make_cluster, resolve_kind
from hpcserve.cluster.protocol import Cluster, JobState, JobView, WorkerSpec

__all__ = ["Cluster", "JobState", "JobView", "WorkerSpec", "make_cluster", "resolve_kind"]
