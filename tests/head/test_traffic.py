"""The head adds up what frontends count."""

from __future__ import annotations

from hpcserve.head.traffic import TrafficSum
from hpcserve.types import Traffic


def test_counts_of_frontends_add_up_from_their_first_report_on() -> None:
    traffic = TrafficSum()
    traffic.take("a", Traffic())
    traffic.take("b", Traffic(finished=100, ttft=(5, 0)))
    traffic.take("a", Traffic(finished=2, ttft=(1, 1), running=3))
    traffic.take("b", Traffic(finished=101, ttft=(5, 1), running=4, queued=1))
    assert traffic.total() == Traffic(finished=3, ttft=(1, 2), running=7, queued=1)


def test_a_frontend_that_is_gone_runs_nothing_but_what_it_counted_stays() -> None:
    traffic = TrafficSum()
    traffic.take("a", Traffic())
    traffic.take("a", Traffic(finished=2, itl=(4,), running=3))
    traffic.leave("a")
    assert traffic.total() == Traffic(finished=2, itl=(4,))


def test_a_frontend_that_connects_again_is_not_counted_twice() -> None:
    traffic = TrafficSum()
    traffic.take("first connection", Traffic())
    traffic.take("first connection", Traffic(finished=2))
    traffic.leave("first connection")
    traffic.take("second connection", Traffic(finished=2))
    traffic.take("second connection", Traffic(finished=3))
    assert traffic.total().finished == 3
