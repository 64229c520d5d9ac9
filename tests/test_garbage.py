"""Memory that is given back. In processes of their own, as it cannot be undone."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_CHURN = """
import ctypes, sys
from hpcserve.garbage import return_large_blocks

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "return":
    return_large_blocks()
kept, table = [], bytearray(5_000_000)
for number in range(100):  # a table made anew again and again, and small things that stay between
    table = bytearray(5_000_000 - number * 10_000)
    kept.append(bytes(2_000 + number))
print(libc.mallinfo2().fordblks)
"""


def kept_bytes(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", _CHURN, how], capture_output=True, text=True, check=True, timeout=30)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs a glibc that tells what it keeps")
def test_large_blocks_that_are_freed_go_back_to_the_system() -> None:
    assert kept_bytes("return") < 2_000_000 < kept_bytes("keep")
