"""A scripted `Backend`: what it says, when it hangs, and how it fails is decided by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hpcserve.types import (
    Caller,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    FinishReason,
    LoadReport,
    Phase,
    Role,
    Status,
    TokenLogprob,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

OnOutput = Callable[[EngineOutput], None]
Script = Callable[[EngineRequest, OnOutput], Awaitable[None]]

CONTEXT = 1000


class FakeBackend:
    def __init__(self, script: Script | None = None) -> None:
        self.script = script or speak(["Hello", " world"])
        self.now = ready_status()
        self.requests: list[EngineRequest] = []
        self.callers: list[Caller] = []
        self.running = 0
        self.aborted: list[str] = []
        self.changed = asyncio.Condition()

    def status(self) -> Status:
        return self.now

    async def run(self, request: EngineRequest, on_output: OnOutput, caller: Caller) -> None:
        self.requests.append(request)
        self.callers.append(caller)
        self.running += 1
        try:
            await self.script(request, on_output)
        except asyncio.CancelledError:
            self.aborted.append(request.request_id)
            raise
        finally:
            self.running -= 1

    async def until(self, condition: Callable[[], bool], timeout_s: float = 1.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.002)


def speak(texts: Sequence[str], finish: FinishReason = "stop", *, cached: int | None = 3, pause: bool = True) -> Script:
    """One delta a text, then the finish reason on the last one."""

    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        for number, text in enumerate(texts):
            if pause:
                await asyncio.sleep(0)
            on_output(delta(request, number, text, finish if number == len(texts) - 1 else None, cached))

    return script


def speak_seed() -> Script:
    """Answers with the seed that it got, so that choices can be told apart."""

    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        await speak([f"seed {request.sampling.seed}"])(request, on_output)

    return script


def hang_after(texts: Sequence[str]) -> Script:
    """Says something, then nothing for ever."""

    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        for number, text in enumerate(texts):
            on_output(delta(request, number, text, None, None))
        await asyncio.Event().wait()

    return script


def fail_after(texts: Sequence[str], error: Exception) -> Script:
    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        for number, text in enumerate(texts):
            on_output(delta(request, number, text, None, None))
            await asyncio.sleep(0.01)
        raise error

    return script


def flood(text: str) -> Script:
    """Never stops talking."""

    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        while True:
            on_output(delta(request, 1, text, None, None))
            await asyncio.sleep(0)

    return script


def delta(
    request: EngineRequest, number: int, text: str, finish: FinishReason | None, cached: int | None
) -> EngineOutput:
    return EngineOutput(
        request_id=request.request_id,
        token_ids=(number,),
        text=text,
        logprobs=logprobs_of(request, number, text),
        finish_reason=finish,
        stop_reason=None,
        cached_tokens=cached if number == 0 else None,
    )


def logprobs_of(request: EngineRequest, number: int, text: str) -> tuple[TokenLogprob, ...]:
    wanted = request.sampling.logprobs
    if wanted is None:
        return ()
    top = tuple((number + i, text if i == 0 else f"alt{i}", -0.5 - i) for i in range(wanted))
    return (TokenLogprob(number, text, -0.5, top),)


def ready_status(**changes: object) -> Status:
    fields: dict[str, object] = {
        "name": "test",
        "phase": Phase.SERVING,
        "model": "mock",
        "mode": "aggregated",
        "policy": "kv",
        "cluster": "local",
        "wanted": {"both": 1},
        "workers": (worker(),),
        "load": {WorkerId("both-0-a"): LoadReport(num_running=3, kv_usage=0.25, cached_tokens_total=7)},
    }
    return Status(**{**fields, **changes})


def worker(state: WorkerState = WorkerState.READY, context: int = CONTEXT, name: str = "both-0-a") -> WorkerInfo:
    engine = EngineInfo(engine="mock", model="mock", block_size=32, num_kv_blocks=100, max_model_len=context)
    return WorkerInfo(worker=WorkerId(name), pool="both", role=Role.BOTH, state=state, engine=engine)
