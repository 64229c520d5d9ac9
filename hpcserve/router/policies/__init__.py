"""How one worker is chosen among candidates. A policy sees numbers; who may be a candidate is for the router to say."""

from __future__ import annotations

from hpcserve.config.models import RouterConfig
from hpcserve.router.policies.base import Candidate, Policy
from hpcserve.router.policies.dynamo import Dynamo
from hpcserve.router.policies.kv import Kv
from hpcserve.router.policies.least_loaded import LeastLoaded
from hpcserve.router.policies.power_of_two import PowerOfTwo
from hpcserve.router.policies.round_robin import RoundRobin
from hpcserve.router.policies.session import Session
from hpcserve.router.policies.uniform import Random
from hpcserve.router.rates import Rates

__all__ = ["Candidate", "Kv", "Policy", "make_policy"]


def make_policy(config: RouterConfig, block_size: int, rates: Rates) -> Policy:
    """Return the policy that the configuration names; `block_size` is in tokens."""
    match config.policy:
        case "random":
            return Random(config.seed)
        case "round_robin":
            return RoundRobin()
        case "least_loaded":
            return LeastLoaded()
        case "power_of_two":
            return PowerOfTwo(config.seed)
        case "session":
            return Session(config.seed)
        case "dynamo":
            return Dynamo(block_size)
        case "kv":
            return Kv(rates)
