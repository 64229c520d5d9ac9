"""A scripted `Backend`: what it says, when it hangs, and how it fails is decided by the test."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from hpcserve.types import (
    Ability,
    Caller,
    EngineInfo,
    EngineOutput,
    EngineRequest,
    FinishReason,
    LoadReport,
    ParsedDelta,
    Phase,
    Role,
    Status,
    TokenLogprob,
    ToolCallDelta,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

OnOutput = Callable[[EngineOutput], None]
Script = Callable[[EngineRequest, OnOutput], Awaitable[None]]

CONTEXT = 1000


class FakeBackend:
    def __init__(self, script: Script | None = None, can: tuple[Ability, ...] = ("generate",)) -> None:
        self.script = script or speak(["Hello", " world"])
        self.now = ready_status(workers=(worker(can=can),))
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


def speak_parsed(
    deltas: Sequence[ParsedDelta | None], finish: FinishReason = "stop", *, text: str = "raw text"
) -> Script:
    """Like an engine with parsers: one delta each while streaming, else all of them together with the last output."""

    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        parsing = request.parsing
        assert parsing is not None, "nothing was to be parsed"
        for number, parsed in enumerate(deltas):
            is_last = number == len(deltas) - 1
            if not parsing.streams:
                parsed = merged(deltas) if is_last else None
            output = delta(request, number, text, finish if is_last else None, None)
            on_output(msgspec.structs.replace(output, parsed=parsed))

    return script


def merged(deltas: Sequence[ParsedDelta | None]) -> ParsedDelta:
    """Return the whole that deltas are pieces of."""
    given = [each for each in deltas if each is not None]
    contents = [each.content for each in given if each.content is not None]
    reasoning = [each.reasoning for each in given if each.reasoning is not None]
    calls: dict[int, ToolCallDelta] = {}
    for piece in (call for each in given for call in each.tool_calls):
        so_far = calls.get(piece.index, piece)
        if so_far is not piece:
            arguments = (so_far.arguments or "") + (piece.arguments or "")
            so_far = msgspec.structs.replace(so_far, arguments=arguments)
        calls[piece.index] = so_far
    return ParsedDelta(
        content="".join(contents) if contents else None,
        reasoning="".join(reasoning) if reasoning else None,
        tool_calls=tuple(calls.values()),
        reasoning_tokens=given[-1].reasoning_tokens if given else None,
    )


def embed(cached: int = 0) -> Script:
    """Answers with the number of tokens, and the first of them, as a vector; generates text where that is wanted."""

    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        if not request.embeds:
            await speak(["Hello", " world"])(request, on_output)
            return
        vector = struct.pack("<2f", len(request.token_ids), request.token_ids[0])
        on_output(
            EngineOutput(request_id=request.request_id, finish_reason="stop", cached_tokens=cached, embedding=vector)
        )

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


def worker(
    state: WorkerState = WorkerState.READY,
    context: int = CONTEXT,
    name: str = "both-0-a",
    can: tuple[Ability, ...] = ("generate",),
) -> WorkerInfo:
    engine = EngineInfo(engine="mock", model="mock", block_size=32, num_kv_blocks=100, max_model_len=context, can=can)
    return WorkerInfo(worker=WorkerId(name), pool="both", role=Role.BOTH, state=state, engine=engine)
