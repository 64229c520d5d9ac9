"""Who asks reaches the router: with the first assignment of a request, and again when its worker was lost."""

from __future__ import annotations

import asyncio

import pytest

from hpcserve.types import Caller, EngineOutput, RouteRequest
from tests.dispatch.conftest import Cell, request


@pytest.fixture
def asked(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> list[RouteRequest]:
    routes: list[RouteRequest] = []
    submit = cell.router.submit

    def note(route: RouteRequest, now: float) -> None:
        routes.append(route)
        submit(route, now)

    monkeypatch.setattr(cell.router, "submit", note)
    return routes


async def test_the_caller_is_told_with_every_assignment_of_its_request(cell: Cell, asked: list[RouteRequest]) -> None:
    alice = Caller(tenant="alice", session="s")
    outputs: list[EngineOutput] = []
    first = await cell.add("both")
    first.hold_at(103)
    running = asyncio.create_task(cell.dispatcher.run(request(), outputs.append, alice))
    await asyncio.wait_for(first.reached.wait(), 5)
    second = await cell.add("both")
    await cell.planes[first.worker].close()
    await asyncio.wait_for(running, 5)
    assert second.seen
    assert [route.caller for route in asked] == [alice, alice]
