"""A process that was started with the shifted clock sees it jump while it runs, and waits as long as before."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.clocks import make_clocks

SAY = "import sys, time\nfor _ in sys.stdin:\n    print(time.time(), time.monotonic(), flush=True)"


def test_a_clock_jumps_for_agents_or_for_everybody_else(tmp_path: Path) -> None:
    clocks = make_clocks(tmp_path)
    if clocks is None:
        pytest.skip("there is no C compiler")

    def start(*words: str) -> subprocess.Popen[str]:
        command, env = [sys.executable, "-c", SAY, *words], os.environ | clocks.env
        return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def off_s(process: subprocess.Popen[str]) -> tuple[float, float]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        wall, monotonic = map(float, process.stdout.readline().split())
        return wall - time.time(), monotonic - time.monotonic()

    with start() as head, start("hpcserve.agent") as agent:
        try:
            assert off_s(head) == pytest.approx((0, 0), abs=5)
            assert off_s(agent) == pytest.approx((0, 0), abs=5)
            clocks.shift(agents_s=3600)
            assert off_s(head) == pytest.approx((0, 0), abs=5)
            assert off_s(agent) == pytest.approx((3600, 0), abs=5)
            clocks.shift(others_s=-60)
            assert off_s(head) == pytest.approx((-60, 0), abs=5)
            assert off_s(agent) == pytest.approx((0, 0), abs=5)
        finally:
            head.kill()
            agent.kill()
