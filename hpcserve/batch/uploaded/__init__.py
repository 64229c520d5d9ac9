"""Batches that came over the API, run by the same parts as those of the command line, from records in a `JobStore`.

`checking.py` finds what is wrong with an input, `job.py` is the life of one batch, `runner.py` that of all.
"""

from hpcserve.batch.uploaded.job import Target
from hpcserve.batch.uploaded.runner import BatchRunner

__all__ = ["BatchRunner", "Target"]
