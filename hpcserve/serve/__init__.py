"""Composition root: builds every part of a deployment, finds it again, and ends it. What the CLI calls.

`start` spawns the head (`head.py`), the head spawns the frontend (`frontend.py`) and launches the node agents.
"""

from hpcserve.serve.start import render_jobs, start
from hpcserve.serve.stop import stop
from hpcserve.serve.watch import fetch_plan, fetch_status, watch

__all__ = ["fetch_plan", "fetch_status", "render_jobs", "start", "stop", "watch"]
