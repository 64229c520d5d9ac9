"""What a run is cut into: `Unit`s, and the `Service` that answers them. Here the two sides of a run meet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from hpcserve.batch.lines import Item


@dataclass(frozen=True, slots=True)
class Unit:
    """Requests that are run together on one worker: they begin alike, or just follow each other."""

    number: int  # from 0, in the order in which a run wants them started
    items: tuple[Item, ...]  # at least one


@dataclass(frozen=True, slots=True)
class Reply:
    """The last answer to a request; without a status there was none."""

    status: int | None
    request_id: str | None
    body: bytes
    attempts: int = 1
    reasons: tuple[str, ...] = ()  # of the attempts before, or of all where the last failed, too


Take = Callable[[Item, Reply], Awaitable[None]]


class Service(Protocol):
    """What answers requests: an endpoint over HTTP, or a deployment's workers as Dask tasks."""

    @property
    def unit_size(self) -> int:
        """How many requests one unit should have, at most."""
        ...

    async def run(self, unit: Unit, take: Take) -> None:
        """Have every request of a unit answered, and hand each answer to `take` as it comes; safe to cancel.

        Raises `DeploymentError` where the service is at fault for too long; no request has failed then.
        """
        ...
