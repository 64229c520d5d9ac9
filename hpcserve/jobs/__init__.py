"""What the Files and Batches API keeps: files that were uploaded or made, and batches. Runs none of them.

Records are in SQLite, bytes in a directory beside it. Several frontends and the batch runner share both, and they
survive each of them, and the deployment's end.
"""

from hpcserve.jobs.records import (
    ACTIVE,
    FINAL,
    BatchError,
    BatchRecord,
    BatchStatus,
    FileRecord,
    RequestCounts,
    new_batch_id,
    new_file_id,
)
from hpcserve.jobs.store import JobStore, jobs_directory

__all__ = [
    "ACTIVE",
    "FINAL",
    "BatchError",
    "BatchRecord",
    "BatchStatus",
    "FileRecord",
    "JobStore",
    "RequestCounts",
    "jobs_directory",
    "new_batch_id",
    "new_file_id",
]
