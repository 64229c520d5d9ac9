"""Replays a recorded trace through the router and the mock engine's scheduler in virtual time.

Nothing here waits, and no result depends on the machine it runs on. `event_loop` is the whole of it; `trace` reads,
`report` sums up, `sweep` replays many sizes.
"""

from hpcserve.simulate.event_loop import replay
from hpcserve.simulate.report import Report
from hpcserve.simulate.scenario import Scenario
from hpcserve.simulate.trace import TraceRequest, load_trace

__all__ = ["Report", "Scenario", "TraceRequest", "load_trace", "replay"]
