"""The limit of open files, in processes of their own: it cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

RUN = """
import logging, resource
from hpcserve.serve.open_files import raise_open_files_limit
logging.basicConfig()
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
print(raise_open_files_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def run(soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    code = RUN.format(soft=soft, hard=hard)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    done = run(256, 9000)

    assert done.stdout.split() == ["9000", "9000"]
    assert not done.stderr


def test_a_low_hard_limit_is_warned_about() -> None:
    assert "at most 512 open files" in run(256, 512).stderr
