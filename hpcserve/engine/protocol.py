"""What every engine must do. `tests/contract/test_engine.py` is the executable form of this page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from hpcserve.types import EngineInfo, EngineOutput, EngineRequest, KvEvent, LoadReport, RequestId, Role, WorkerId

OnOutput = Callable[[EngineOutput], None]
"""Takes one output. It is called on the event loop, must not block, and raises nothing."""
Run = Callable[[EngineRequest, OnOutput], Coroutine[None, None, None]]
"""`PushingEngine.run`, or what does the same for another engine (`push.run_of`)."""


@dataclass(frozen=True, kw_only=True)
class EngineContext:
    """Where an engine runs: what it cannot know from its configuration."""

    worker: WorkerId
    role: Role
    host: str  # address that other workers reach this one at (KV side channel)
    moves_kv: bool  # whether KV is handed over and pulled, where the engine can
    scratch: Path  # node-local directory that this engine may write to; removed by the agent


class AsyncEngine(Protocol):
    """One model on one GPU group. All methods are called on one event loop, and none blocks it."""

    async def start(self, on_kv_events: Callable[[list[KvEvent]], None]) -> EngineInfo:
        """Load the model and get ready to generate. Raises `EngineError`, after which nothing is left running.

        `on_kv_events` is called on the event loop, at most once a step, with what the prefix cache stored and removed
        since the last call, in order, hashed by `kv.hashing`. An engine that cannot tell never calls it.
        """
        ...

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Yield what each step adds; the last output, and only that, has a finish reason.

        Closing the iterator, or cancelling the task that iterates, aborts the request. A request that cannot run
        (too long, unknown option) ends with one output of reason "error", which `is_refusal` where no engine would take
        it as written; an engine that died raises `EngineError`.
        With `prefill_only` the one generated token comes with a `KvHandle`, whose blocks are kept until fetched or
        until the transport's lease ends. A `kv` handle that cannot be pulled is recomputed and counted, never an error.
        """
        ...

    async def abort(self, request_id: RequestId) -> None:
        """End a request soon; its iterator yields a last output with reason "abort". Unknown ids are ignored.

        That output has what was generated and not given out yet (without `streams`: all), but no text that would be
        held back if the request went on. Its blocks stay in the prefix cache: a prefill of prompt and tokens so far
        computes next to nothing.
        """
        ...

    def load(self) -> LoadReport:
        """Return the newest measurements. Cheap: called several times a second.

        Counters only grow, also over `stop`: the last report is what the engine has done.
        """
        ...

    async def stop(self) -> None:
        """Free everything. Running requests end with reason "abort". Safe to call twice, and after a failed start."""
        ...


@runtime_checkable
class PushingEngine(AsyncEngine, Protocol):
    """An engine that can hand outputs over by calls, those of a step in one turn of the loop: no task switch a token.

    Its `generate` is `push.iterate` of its `run`. An engine without `run` is as good, only dearer.
    """

    async def run(self, request: EngineRequest, on_output: OnOutput) -> None:
        """Call `on_output` with each output that `generate` would yield, and return after the last.

        Cancelling aborts the request; nothing is called after that. Raises what `generate` raises.
        """
        ...
