"""Engines: one `AsyncEngine` protocol, and what implements it (`vllm`, `mock`)."""

from hpcserve.engine.protocol import AsyncEngine, EngineContext

__all__ = ["AsyncEngine", "EngineContext"]
