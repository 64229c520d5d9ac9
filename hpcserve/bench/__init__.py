"""Measures one running engine and fits the timing model that simulations and the mock engine compute with.

`measuring` is the whole of it: it starts the engine, warms it, and calls `prefill`, `decode` and `fit`. Nothing here
knows of routing, of deployments or of the command line.
"""

from hpcserve.bench.measuring import Effort, bench
from hpcserve.bench.result import BenchResult

__all__ = ["BenchResult", "Effort", "bench"]
