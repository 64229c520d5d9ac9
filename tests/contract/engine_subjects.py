"""Engines under test, and what they told of their caches. Used by every suite that runs whole engines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hpcserve.config import Config
from hpcserve.engine.factory import make_engine
from hpcserve.engine.protocol import EngineContext
from hpcserve.types import (
    BlockHash,
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    KvEvent,
    KvHandle,
    LoadReport,
    Role,
    WorkerId,
)
from tests.contract.engine_process import RemoteEngine

WAIT_S = 10.0


@dataclass
class Cache:
    """What an engine says that its prefix cache holds."""

    hashes: set[BlockHash] = field(default_factory=set)
    history: list[KvEvent] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def apply(self, events: list[KvEvent]) -> None:
        self.history.extend(events)
        for event in events:
            match event:
                case BlocksStored(hashes):
                    self.hashes.update(hashes)
                case BlocksRemoved(hashes):
                    self.hashes.difference_update(hashes)
                case BlocksCleared():
                    self.hashes.clear()
        self._notifying = asyncio.ensure_future(self._notify())

    async def wait_for(self, hashes: list[BlockHash]) -> None:
        """Return once all of `hashes` are there."""
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: self.hashes.issuperset(hashes))

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


@dataclass
class Subject:
    """One engine under test."""

    engine: Any
    info: EngineInfo
    cache: Cache

    async def run(self, request: EngineRequest) -> list[EngineOutput]:
        return [output async for output in self.engine.generate(request)]

    async def load(self) -> LoadReport:
        if isinstance(self.engine, RemoteEngine):
            return await self.engine.measure()
        return self.engine.load()


def make_config(kind: str, model: Path | None, *, parsers: dict[str, str] | None = None, **extra: Any) -> Config:
    engine = {"kind": kind, "block_size": 32, "mock": {"speedup": 50.0}, **extra}
    loaded = {"path": model, "max_model_len": 4096, **(parsers or {})}
    return Config.model_validate({"model": loaded, "engine": engine, "cluster": {"local": {"threads": 1}}})


def over_mpi(config: Config, *, timeout_s: float = 4.0) -> Config:
    """Return the configuration of engines in the ranks of an MPI world."""
    kv = config.kv.model_copy(update={"transport": "mpi", "timeout_s": timeout_s})
    return config.model_copy(update={"kv": kv, "cluster": config.cluster.model_copy(update={"kind": "mpi"})})


def make_context(name: str, scratch: Path, *, moves_kv: bool = True) -> EngineContext:
    return EngineContext(worker=WorkerId(name), role=Role.BOTH, host="127.0.0.1", moves_kv=moves_kv, scratch=scratch)


def make_subject_engine(config: Config, context: EngineContext) -> Any:
    """vLLM runs in a process of its own, any other engine in this one."""
    return RemoteEngine(config, context) if config.engine.kind == "vllm" else make_engine(config, context)


async def start_subject(engine: Any) -> Subject:
    cache = Cache()
    info = await engine.start(cache.apply)
    return Subject(engine, info, cache)


def spoil(handle: KvHandle) -> KvHandle:
    """Return a handle whose source is gone."""
    params = {**handle.params, "remote_engine_id": "gone", "remote_port": 1, "expires_at": 0.0}
    return msgspec.structs.replace(handle, params=params)


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def text(outputs: list[EngineOutput]) -> str:
    return "".join(output.text for output in outputs)
