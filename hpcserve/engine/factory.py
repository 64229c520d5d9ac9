"""Makes the engine that the configuration names. Imports no engine but that one."""

from __future__ import annotations

from hpcserve.config import Config
from hpcserve.engine.protocol import AsyncEngine, EngineContext


def make_engine(config: Config, context: EngineContext) -> AsyncEngine:
    """Return an engine that is not started yet."""
    if config.engine.kind == "mock":
        from hpcserve.engine.mock.engine import MockEngine

        return MockEngine(config, context)
    from hpcserve.engine.vllm import VllmEngine

    return VllmEngine(config, context)
