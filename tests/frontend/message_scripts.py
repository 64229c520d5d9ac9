"""What engines answer to /v1/messages, and an engine that can do everything."""

from __future__ import annotations

import msgspec
from fake_backend import CONTEXT, FakeBackend, OnOutput, Script, ready_status, worker

from hpcserve.types import EngineOutput, EngineRequest, FinishReason, ParsedDelta, ToolCallDelta

HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def tool_piece(
    index: int, id_: str | None = None, name: str | None = None, arguments: str | None = None
) -> ToolCallDelta:
    return ToolCallDelta(index=index, id=id_, name=name, arguments=arguments)


CALL = (
    ParsedDelta(reasoning="It is "),
    ParsedDelta(reasoning="about weather."),
    ParsedDelta(content="Let me "),
    ParsedDelta(content="look."),
    ParsedDelta(tool_calls=(tool_piece(0, "call_1", "weather"),)),
    ParsedDelta(tool_calls=(tool_piece(0, arguments='{"city":'),)),
    ParsedDelta(tool_calls=(tool_piece(0, arguments=' "Paris"}'),)),
    ParsedDelta(tool_calls=(tool_piece(1, "call_2", "weather", '{"city": "Rome"}'),), reasoning_tokens=2),
)
CALL_IN_ONE = ParsedDelta(
    reasoning="It is about weather.",
    content="Let me look.",
    tool_calls=(
        tool_piece(0, "call_1", "weather", '{"city": "Paris"}'),
        tool_piece(1, "call_2", "weather", '{"city": "Rome"}'),
    ),
    reasoning_tokens=2,
)
BLOCKS = [
    {"type": "thinking", "thinking": "It is about weather."},
    {"type": "text", "text": "Let me look."},
    {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}},
    {"type": "tool_use", "id": "call_2", "name": "weather", "input": {"city": "Rome"}},
]


def parse(
    deltas: tuple[ParsedDelta | None, ...],
    whole: ParsedDelta,
    finish: FinishReason = "stop",
    stop_reason: int | str | None = None,
) -> Script:
    """Answers with what an engine's parsers make of a text: piece by piece, or `whole` at the end."""

    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        assert request.parsing is not None
        each_parsed = deltas if request.parsing.streams else (*[None] * (len(deltas) - 1), whole)
        for number, parsed in enumerate(each_parsed):
            is_last = number == len(each_parsed) - 1
            on_output(
                EngineOutput(
                    request_id=request.request_id,
                    token_ids=(number,),
                    text="never shown",
                    parsed=parsed,
                    cached_tokens=3 if number == 0 else None,
                    finish_reason=finish if is_last else None,
                    stop_reason=stop_reason if is_last else None,
                )
            )

    return script


def stop_at(text: str, stop_reason: int | str | None) -> Script:
    async def script(request: EngineRequest, on_output: OnOutput) -> None:
        on_output(
            EngineOutput(
                request_id=request.request_id,
                token_ids=(1,),
                text=text,
                finish_reason="stop",
                stop_reason=stop_reason,
            )
        )

    return script


def able_backend(script: Script | None = None, context: int = CONTEXT) -> FakeBackend:
    """Whose engine can do everything."""
    backend = FakeBackend(script)
    plain = worker(context=context)
    engine = msgspec.structs.replace(plain.engine, can=("generate", "structured_output", "tools", "reasoning"))
    backend.now = ready_status(workers=(msgspec.structs.replace(plain, engine=engine),))
    return backend
