"""Where workers come from: processes of this machine, or Slurm jobs. Launched, watched and ended; nothing is judged here."""

from hpcserve.cluster.factory import make_cluster, resolve_kind
from hpcserve.cluster.protocol import Cluster, JobState, JobView, WorkerSpec

__all__ = ["Cluster", "JobState", "JobView", "WorkerSpec", "make_cluster", "resolve_kind"]
