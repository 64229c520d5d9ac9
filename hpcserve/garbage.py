"""What a long-lived process does about memory: it looks for cyclic garbage rarely, and gives large blocks back."""

from __future__ import annotations

import ctypes
import gc

_THRESHOLDS = (20_000, 20, 20)  # Python's own are 700, 10, 10: a tenth of a short request's time
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_LARGE_BYTES = 1 << 20


def collect_rarely() -> None:
    """Call it once a process has started up.

    Requests leave no cycles behind when they go well; what others leave is found all the same, a little later. What is
    there already is not looked at again: with Dask or an engine loaded that takes tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def return_large_blocks() -> None:
    """Have the C library give large blocks back to the system when they are freed. Does nothing where it is not glibc.

    It does at first; but with the first that is freed it begins to keep blocks of that size in its heap, where small
    ones that live longer come to lie between them. A head's table of prefixes is made anew every few seconds, 5 MB at a
    time, and each time found less of that room fit to be used again: 1.5 MB a minute more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
