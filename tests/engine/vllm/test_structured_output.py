"""Structured output, tool calls and reasoning from a real vLLM, and what becomes of them when a worker is lost.

The model has random weights: what it says is nonsense, and yet of the form that was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from hpcserve.types import ChatParsing, EngineOutput, EngineRequest, RequestId, Sampling, StructuredOutput
from tests.contract.engine_subjects import (
    Subject,
    make_config,
    make_context,
    make_subject_engine,
    start_subject,
    text,
    tokens,
)
from tests.contract.models import MARKS

pytestmark = [
    pytest.mark.real,
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]

_numbers = count()
PROMPT = list(range(600, 700))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PERSON = StructuredOutput(kind="json_schema", value=json.dumps(SCHEMA))
TOOLS = tuple(  # without "strict" vLLM takes any JSON for arguments
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}}
    for name in ("add_person", "find_person")
)
Ask = Callable[..., EngineRequest]
END_OF_REASONING = 2048 - len(MARKS) + MARKS.index("</think>")  # the marks are the vocabulary's last words
PLAIN = {"enable_thinking": False}  # the reasoning parser then takes the output for an answer from the start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(marked_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Subject]]:
    """Two engines that can hand KV to each other; started one after the other, for machines with few cores."""
    scratch = tmp_path_factory.mktemp("scratch")
    config = make_config("vllm", marked_model, parsers={"tool_parser": "hermes", "reasoning_parser": "qwen3"})
    made = [make_subject_engine(config, make_context(name, scratch)) for name in ("a-0-1", "b-0-1")]
    try:
        yield [await start_subject(engine) for engine in made]
    finally:
        for engine in made:
            await engine.stop()


@pytest.fixture
def one(engines: list[Subject]) -> Subject:
    return engines[0]


@pytest.fixture(scope="module")
def ask(marked_model: Path) -> Ask:
    """Make greedy requests that avoid white space, which a model of random weights may choose for ever in JSON."""
    vocabulary = Tokenizer.from_file(str(marked_model / "tokenizer.json"))
    words = {index: vocabulary.decode([index]) for index in range(vocabulary.get_vocab_size())}
    blank = {index: -100.0 for index, word in words.items() if word and not word.strip()}

    def make(
        structured: StructuredOutput | None = None, bias: dict[int, float] | None = None, **extra: Any
    ) -> EngineRequest:
        sampling = Sampling(max_tokens=300, temperature=0.0, structured=structured, logit_bias=blank | (bias or {}))
        extra = {"token_ids": PROMPT, **extra}
        return EngineRequest(request_id=RequestId(f"s{next(_numbers)}"), sampling=sampling, **extra)

    return make


def resume(request: EngineRequest, done: list[EngineOutput]) -> EngineRequest:
    """What is asked of the next worker when one was lost after `done`."""
    sampling = msgspec.structs.replace(request.sampling, max_tokens=request.sampling.max_tokens - len(tokens(done)))
    return msgspec.structs.replace(
        request,
        request_id=RequestId(f"s{next(_numbers)}"),
        token_ids=request.token_ids + tokens(done),
        num_resumed=len(tokens(done)),
        sampling=sampling,
    )


def calls_of(outputs: list[EngineOutput]) -> list[tuple[str, Any]]:
    joined: dict[int, list[str]] = {}
    for output in outputs:
        for call in output.parsed.tool_calls if output.parsed else ():
            entry = joined.setdefault(call.index, ["", ""])
            entry[0] += call.name or ""
            entry[1] += call.arguments or ""
    return [(name, json.loads(arguments)) for name, arguments in joined.values()]


def content_of(outputs: list[EngineOutput]) -> str:
    return "".join(output.parsed.content or "" for output in outputs if output.parsed)


def is_person(value: Any) -> bool:
    return (
        set(value) == set(SCHEMA["required"])
        and isinstance(value["name"], str)
        and 0 <= value["age"] <= 99
        and 2 <= len(value["tags"]) <= 3
    )


async def test_the_engine_says_what_it_can(one: Subject) -> None:
    assert one.info.can == ("generate", "structured_output", "tools", "reasoning")


async def test_a_json_schema_is_obeyed(ask: Ask, one: Subject) -> None:
    outputs = await one.run(ask(PERSON, parsing=ChatParsing(streams=True, template_kwargs=PLAIN)))
    assert outputs[-1].finish_reason == "stop"
    assert is_person(json.loads(text(outputs)))
    assert content_of(outputs) == text(outputs)


@pytest.mark.parametrize(
    ("structured", "pattern"),
    [
        (StructuredOutput(kind="regex", value="[a-f]{5}-[0-9]{3}"), "[a-f]{5}-[0-9]{3}"),
        (StructuredOutput(kind="choice", value='["north", "south"]'), "north|south"),
        (StructuredOutput(kind="grammar", value='root ::= ("ab" | "cd") "!"'), "(ab|cd)!"),
        (StructuredOutput(kind="json_object"), r"(?s)\s*\{.*"),
    ],
)
async def test_other_structures_are_obeyed(ask: Ask, one: Subject, structured: StructuredOutput, pattern: str) -> None:
    parsing = ChatParsing(streams=False, template_kwargs=PLAIN)
    outputs = await one.run(ask(structured, parsing=parsing))
    assert re.fullmatch(pattern, text(outputs)), text(outputs)


@pytest.mark.parametrize(
    "structured",
    [
        StructuredOutput(kind="json_schema", value='{"type": '),
        StructuredOutput(kind="regex", value="(["),
        StructuredOutput(kind="choice", value="no list"),
        StructuredOutput(kind="grammar", value="root := oops"),
    ],
)
async def test_a_structure_that_makes_no_sense_fails_alone(
    ask: Ask, one: Subject, structured: StructuredOutput
) -> None:
    outputs = await one.run(ask(structured))
    assert [output.finish_reason for output in outputs] == ["error"]
    assert outputs[0].error
    assert (await one.run(ask()))[-1].error is None


@pytest.mark.parametrize("streams", [True, False])
async def test_a_required_tool_is_called_with_arguments_of_its_schema(ask: Ask, one: Subject, streams: bool) -> None:
    parsing = ChatParsing(
        streams=streams, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, template_kwargs=PLAIN
    )
    outputs = await one.run(ask(parsing=parsing))
    calls = calls_of(outputs)
    assert outputs[-1].finish_reason == "stop"
    assert calls
    assert all(name in ("add_person", "find_person") and is_person(arguments) for name, arguments in calls)


@pytest.mark.parametrize("streams", [True, False])
async def test_a_named_tool_is_called(ask: Ask, one: Subject, streams: bool) -> None:
    choice = {"type": "function", "function": {"name": "find_person"}}
    parsing = _tool_chat(choice, streams=streams)
    calls = calls_of(await one.run(ask(parsing=parsing)))
    assert [name for name, _ in calls] == ["find_person"]
    assert is_person(calls[0][1])


async def test_a_structured_output_goes_on_at_another_worker(ask: Ask, engines: list[Subject]) -> None:
    one, two = engines
    request = ask(PERSON, parsing=ChatParsing(streams=True, template_kwargs=PLAIN))
    whole = await one.run(request)
    for num_done in range(1, len(whole), 7):
        done = whole[:num_done]
        rest = await two.run(resume(request, done))
        assert rest[-1].error is None
        assert text(done) + text(rest) == text(whole), f"after {num_done} tokens"
        assert content_of(done) + content_of(rest) == text(whole)


@pytest.mark.parametrize("streams", [True, False])
async def test_a_tool_call_goes_on_at_another_worker(ask: Ask, engines: list[Subject], streams: bool) -> None:
    one, two = engines
    request = ask(
        parsing=ChatParsing(
            streams=streams, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, template_kwargs=PLAIN
        )
    )
    whole = await one.run(request)
    for num_done in range(1, len(whole), 17):
        done = whole[:num_done]
        rest = await two.run(resume(request, done))
        assert tokens(done) + tokens(rest) == tokens(whole), f"after {num_done} tokens"
        assert calls_of(done + rest) == calls_of(whole)


async def test_the_grammar_waits_for_the_end_of_reasoning_wherever_that_is(ask: Ask, engines: list[Subject]) -> None:
    one, two = engines
    request = ask(PERSON, parsing=ChatParsing(streams=True), bias={END_OF_REASONING: 100.0})
    whole = await one.run(request)
    answer = content_of(whole)
    assert is_person(json.loads(answer))
    assert whole[-1].parsed is not None
    assert whole[-1].parsed.reasoning_tokens is not None
    for num_done in range(1, len(whole), 7):
        done = whole[:num_done]
        rest = await two.run(resume(request, done))
        assert tokens(done) + tokens(rest) == tokens(whole), f"after {num_done} tokens"
        assert content_of(done) + content_of(rest) == answer


async def test_prefill_here_and_decode_there_keeps_the_structure(ask: Ask, engines: list[Subject]) -> None:
    one, two = engines
    prompt = list(range(1000, 1500))
    request = ask(PERSON, token_ids=prompt, parsing=ChatParsing(streams=True, template_kwargs=PLAIN))
    prefill = await one.run(msgspec.structs.replace(request, prefill_only=True))
    handle = prefill[-1].kv
    assert handle is not None
    outputs = await two.run(msgspec.structs.replace(request, kv=handle))
    assert outputs[0].pulled_tokens >= 480
    assert is_person(json.loads(text(outputs)))
    again = msgspec.structs.replace(request, request_id=RequestId("whole"))
    assert tokens(outputs) == tokens(await one.run(again))


def _tool_chat(choice: str | dict[str, Any], *, streams: bool) -> ChatParsing:
    return ChatParsing(
        streams=streams, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, template_kwargs=PLAIN
    )
