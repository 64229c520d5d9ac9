"""How often a long-lived process looks for cyclic garbage: rarely, and never at what lives as long as it does."""

from __future__ import annotations

import gc

_THRESHOLDS = (20_000, 20, 20)  # Python's own are 700, 10, 10: a tenth of a short request's time


def collect_rarely() -> None:
    """Call it once a process has started up.

    Requests leave no cycles behind when they go well; what others leave is found all the same, a little later. What is
    there already is not looked at again: with Dask or an engine loaded that takes tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
