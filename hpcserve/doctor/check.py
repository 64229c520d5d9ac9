"""One thing that was looked at: what was found, and what to change where that will not do. Looks at nothing itself."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"  # it will start, and something about it will cost time, money or sleep
    PROBLEM = "problem"  # it will not work
    SKIPPED = "skipped"  # it was not looked at, or could not be


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `hpcserve doctor`."""

    name: str
    outcome: Outcome
    found: str  # one line; of a check that was skipped, why
    change: str = ""  # what to do about it, with the option that does it
    group: str = ""  # what it is about: "Slurm", "node gpu1", ...


def good(name: str, found: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name=name, outcome=Outcome.OK, found=found)


def warning(name: str, found: str, change: str) -> Check:
    """Return a check that found what may hurt."""
    return Check(name=name, outcome=Outcome.WARNING, found=found, change=change)


def problem(name: str, found: str, change: str) -> Check:
    """Return a check that found what will not work."""
    return Check(name=name, outcome=Outcome.PROBLEM, found=found, change=change)


def skipped(name: str, why: str, change: str = "") -> Check:
    """Return a check that was not made."""
    return Check(name=name, outcome=Outcome.SKIPPED, found=why, change=change)


def grouped(group: str, checks: Iterable[Check]) -> list[Check]:
    """Return the checks with their group's name."""
    return [msgspec.structs.replace(check, group=group) for check in checks]


def has_problem(checks: Iterable[Check]) -> bool:
    """Whether anything will not work."""
    return any(check.outcome is Outcome.PROBLEM for check in checks)
