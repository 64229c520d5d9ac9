"""The planner: an observation an interval in, decisions with their reasons out.

A change of roles has to be wanted for some intervals in a row, and there is a pause after it; for sizes see `sizes.py`.
"""

from __future__ import annotations

from hpcserve.config.models import PoolsConfig
from hpcserve.config.planning_models import PlannerConfig
from hpcserve.planner.decisions import Decision, Flip, Need, Plan
from hpcserve.planner.demand import Demand
from hpcserve.planner.observation import Observation
from hpcserve.planner.roles import flips, is_lame
from hpcserve.planner.sizes import Sizes
from hpcserve.types import Role


class Planner:
    """Decides for one deployment. It takes for granted that its decisions are carried out, or else repeats them."""

    def __init__(self, config: PlannerConfig, pools: PoolsConfig, *, can_resize: bool = True) -> None:
        """`can_resize`: whether workers can be asked for and given back."""
        self._config = config
        self._is_split = pools.mode == "disaggregated"
        self._demand = Demand(config)
        self._sizes = Sizes(config, pools) if can_resize else None
        self._wanted_role: Role | None = None
        self._num_wanted = 0  # intervals in a row
        self._flipped_at: float | None = None

    def decide(self, seen: Observation) -> Plan:
        """Return what is to be done after one interval more."""
        need = self._demand.take(seen, is_split=self._is_split)
        changes, hopes = self._flips(need, seen)
        resize, wish = self._sizes.take(need, seen) if self._sizes is not None else (None, "")
        decisions: tuple[Decision, ...] = (*changes, *([] if resize is None else [resize]))
        wishes = tuple(each.text for each in hopes) + ((wish,) if wish else ())
        return Plan(need=need, decisions=decisions, wishes=wishes)

    def _flips(self, need: Need, seen: Observation) -> tuple[list[Flip], list[Flip]]:
        """Return the changes of roles whose time has come, and those that are wanted only."""
        if not self._is_split or not self._config.flip_roles:
            return [], []
        wanted = flips(need, seen)
        role = wanted[0].role if wanted else None
        self._num_wanted = self._num_wanted + 1 if role is self._wanted_role else 1
        self._wanted_role = role
        if not wanted:
            return [], []
        lasts = 2 * self._num_wanted >= self._config.num_intervals  # each need is about `num_intervals` already
        rests = self._flipped_at is not None and seen.now - self._flipped_at < self._config.flip_pause_s
        if is_lame(seen) or (lasts and not rests):
            self._flipped_at, self._num_wanted = seen.now, 0
            return wanted, []
        return [], wanted
