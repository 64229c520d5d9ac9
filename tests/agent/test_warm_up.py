"""The first request of a worker is one that its engine can answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hpcserve.agent import node
from hpcserve.comm.tls import create_identity
from hpcserve.config import Config
from hpcserve.errors import EngineError
from hpcserve.state import StateDir
from hpcserve.types import Ability, EngineInfo, EngineOutput, EngineRequest, LoadReport, Role, WorkerId, WorkerState


class FakeEngine:
    """Answers only what it says it can."""

    def __init__(self, *can: Ability) -> None:
        self._can = can

    async def start(self, on_kv_events: Any) -> EngineInfo:
        return EngineInfo(engine="fake", model="m", block_size=32, num_kv_blocks=8, max_model_len=256, can=self._can)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        can = ("embed" if request.embeds else "generate") in self._can
        yield EngineOutput(
            request_id=request.request_id, finish_reason="stop" if can else "error", error=None if can else "cannot"
        )

    def load(self) -> LoadReport:
        return LoadReport()


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "d")
    state.create()
    cert, key = create_identity()
    state.write_private(state.tls_cert, cert)
    state.write_private(state.tls_key, key)
    return state


def make_agent(state: StateDir, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> node.NodeAgent:
    monkeypatch.setattr(node, "make_engine", lambda config, context: engine)
    spec = node.NodeSpec(
        worker=WorkerId("both-0-a"), pool="both", role=Role.BOTH, host="127.0.0.1", scratch=state.path / "scratch"
    )
    return node.NodeAgent(spec, Config.model_validate({"engine": {"kind": "mock"}}), state)


@pytest.mark.parametrize("can", ["generate", "embed"])
async def test_an_engine_is_warmed_up_with_what_it_can(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, can: Ability
) -> None:
    agent = make_agent(state, monkeypatch, FakeEngine(can))
    await agent._load_and_warm()
    assert agent._info.state is WorkerState.READY
    assert agent._info.engine is not None
    assert agent._info.engine.can == (can,)


async def test_an_engine_that_fails_its_first_request_is_not_ready(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(state, monkeypatch, FakeEngine("structured_output"))
    with pytest.raises(EngineError, match="first request failed: cannot"):
        await agent._load_and_warm()
    assert agent._info.state is WorkerState.WARMING
