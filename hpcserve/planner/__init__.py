"""Decides how many workers there are and what each does, from what a deployment shows. No clock, no I/O.

The head acts on it (`head/planning.py`), a simulator replays it (`simulate/`), and `hpcserve plan` shows it.
"""

from hpcserve.planner.decisions import Decision, Flip, Plan, PlanLine, PlanReport, Resize
from hpcserve.planner.observation import Observation, Sight
from hpcserve.planner.observer import Observer
from hpcserve.planner.planner import Planner

__all__ = [
    "Decision",
    "Flip",
    "Observation",
    "Observer",
    "Plan",
    "PlanLine",
    "PlanReport",
    "Planner",
    "Resize",
    "Sight",
]
