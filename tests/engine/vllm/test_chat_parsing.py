"""vLLM's parsers on text that is given: no engine runs. The tokenizer has a word for each mark."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcserve.config import Config
from hpcserve.engine.vllm.parsers import check_parser_names, find_parsers
from hpcserve.engine.vllm.parsing import ChatParser
from hpcserve.errors import ConfigError
from hpcserve.types import ChatParsing, EngineOutput, EngineRequest, ParsedDelta, RequestId, Sampling, StructuredOutput

# Importing vLLM warns of other people's deprecations, and warnings are errors here.
pytestmark = [
    pytest.mark.real,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(120),
]

PROMPT = [500, 501, 502]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer(marked_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(marked_model)


def make_parsers(tokenizer: Any, tools: str, reasoning: str = "none", model_type: str = "llama") -> Any:
    config = Config.model_validate({"model": {"tool_parser": tools, "reasoning_parser": reasoning}})
    kind = SimpleNamespace(model_type=model_type)
    model_config = SimpleNamespace(model="tiny", hf_config=kind, hf_text_config=kind, hf_overrides={})
    return find_parsers(config, model_config, tokenizer)


def make_request(parsing: ChatParsing, resumed: list[int] | None = None, **sampling: Any) -> EngineRequest:
    return EngineRequest(
        request_id=RequestId("r"),
        token_ids=PROMPT + (resumed or []),
        num_resumed=len(resumed or []),
        sampling=Sampling(max_tokens=100, **sampling),
        parsing=parsing,
    )


def make_outputs(tokenizer: Any, text: str) -> list[EngineOutput]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    outputs = [EngineOutput(request_id=RequestId("r"), token_ids=(t,), text=tokenizer.decode([t])) for t in ids]
    return [*outputs, EngineOutput(request_id=RequestId("r"), finish_reason="stop")]


def parse(parsers: Any, request: EngineRequest, outputs: list[EngineOutput]) -> list[EngineOutput]:
    assert request.parsing is not None
    parser = ChatParser(parsers, request, request.parsing)
    return [parser.add(output) for output in outputs]


def join(outputs: list[EngineOutput]) -> ParsedDelta:
    """What a client puts together from the deltas."""
    deltas = [output.parsed for output in outputs if output.parsed is not None]
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        for call in delta.tool_calls:
            entry = calls.setdefault(call.index, ["", ""])
            entry[0] += call.name or ""
            entry[1] += call.arguments or ""
    return ParsedDelta(
        content="".join(delta.content or "" for delta in deltas),
        reasoning="".join(delta.reasoning or "" for delta in deltas),
        tool_calls=tuple(tuple(calls[index]) for index in sorted(calls)),  # type: ignore[misc]
        reasoning_tokens=deltas[-1].reasoning_tokens,
    )


@pytest.mark.parametrize("streams", [True, False])
def test_a_tool_call_is_taken_out_of_the_text(tokenizer: Any, streams: bool) -> None:
    parsing = ChatParsing(streams=streams, tools=(TOOL,), tool_choice="auto")
    outputs = parse(make_parsers(tokenizer, "hermes"), make_request(parsing), make_outputs(tokenizer, "Hm." + CALL))
    parsed = join(outputs)
    assert parsed.content == "Hm."
    assert [(name, json.loads(arguments)) for name, arguments in parsed.tool_calls] == [("add", {"a": 1})]  # type: ignore[misc]
    first = next(call for output in outputs if output.parsed for call in output.parsed.tool_calls)
    assert first.id
    assert "".join(output.text for output in outputs) == "Hm." + CALL
    assert streams or all(output.parsed is None for output in outputs[:-1])


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_further_calls_come_only_where_they_may(tokenizer: Any, streams: bool, parallel: bool) -> None:
    parsing = ChatParsing(streams=streams, tools=(TOOL,), tool_choice="auto", parallel_tool_calls=parallel)
    outputs = make_outputs(tokenizer, CALL + CALL)
    parsed = join(parse(make_parsers(tokenizer, "hermes"), make_request(parsing), outputs))
    assert len(parsed.tool_calls) == 1 + parallel


@pytest.mark.parametrize("streams", [True, False])
def test_without_tools_their_markup_is_text(tokenizer: Any, streams: bool) -> None:
    parsing = ChatParsing(streams=streams, tools=(TOOL,), tool_choice="none")
    parsed = join(parse(make_parsers(tokenizer, "hermes"), make_request(parsing), make_outputs(tokenizer, CALL)))
    assert (parsed.content, parsed.tool_calls) == (CALL, ())


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("reasoner", ["qwen3", "deepseek_r1"])
def test_reasoning_is_told_from_content_and_counted(tokenizer: Any, streams: bool, reasoner: str) -> None:
    outputs = make_outputs(tokenizer, "<think>one two</think>three")
    request = make_request(ChatParsing(streams=streams))
    parsed = join(parse(make_parsers(tokenizer, "none", reasoner), request, outputs))
    assert (parsed.reasoning, parsed.content) == ("one two", "three")
    assert parsed.reasoning_tokens == len(tokenizer.encode("one two", add_special_tokens=False))


@pytest.mark.parametrize("streams", [True, False])
def test_reasoning_that_is_not_wanted_is_left_out_and_counted(tokenizer: Any, streams: bool) -> None:
    request = make_request(ChatParsing(streams=streams, include_reasoning=False))
    outputs = make_outputs(tokenizer, "<think>one two</think>three")
    parsed = join(parse(make_parsers(tokenizer, "none", "qwen3"), request, outputs))
    assert (parsed.reasoning, parsed.content) == ("", "three")
    assert parsed.reasoning_tokens


@pytest.mark.parametrize("streams", [True, False])
def test_a_resumed_chat_goes_on_where_it_was(tokenizer: Any, streams: bool) -> None:
    parsers = make_parsers(tokenizer, "hermes", "qwen3")
    parsing = ChatParsing(streams=streams, tools=(TOOL,), tool_choice="auto")
    outputs = make_outputs(tokenizer, "<think>one two</think>Hm." + CALL)
    whole = parse(parsers, make_request(parsing), outputs)
    for num_done in range(1, len(outputs)):
        done, left = outputs[:num_done], outputs[num_done:]
        request = make_request(parsing, [token for output in done for token in output.token_ids])
        both = whole[:num_done] + parse(parsers, request, left)
        assert join(both) == join(whole), f"after {num_done} tokens"


def test_forced_calls_become_a_structured_output(tokenizer: Any) -> None:
    parsers = make_parsers(tokenizer, "hermes")
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        parsing = ChatParsing(streams=True, tools=(TOOL,), tool_choice=choice)
        parser = ChatParser(parsers, make_request(parsing), parsing)
        assert "add" in parser.adjusted.structured.structural_tag
        assert not parser.request.sampling.skip_special_tokens


def test_a_structured_output_reaches_vllm_through_the_parser(tokenizer: Any) -> None:
    parsing = ChatParsing(streams=True)
    request = make_request(parsing, structured=StructuredOutput(kind="json_schema", value='{"type": "object"}'))
    parser = ChatParser(make_parsers(tokenizer, "none", "qwen3"), request, parsing)
    assert parser.adjusted.structured.json == '{"type": "object"}'
    assert parser.adjusted.reasoning_ended is False


def test_a_parser_that_fails_fails_as_one_request_does(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parsing = ChatParsing(streams=True, tools=(TOOL,), tool_choice="auto")
    request = make_request(parsing)
    parser = ChatParser(make_parsers(tokenizer, "hermes"), request, parsing)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyError("name")

    monkeypatch.setattr(parser._parser, "parse_delta", fail)
    with pytest.raises(ValueError, match=r"parser failed.*KeyError"):
        parser.add(make_outputs(tokenizer, "Hm.")[0])


def test_a_tool_that_is_no_function_is_refused(tokenizer: Any) -> None:
    parsing = ChatParsing(streams=True, tools=({"type": "function"},), tool_choice="auto")
    with pytest.raises(ValueError, match="function"):
        ChatParser(make_parsers(tokenizer, "hermes"), make_request(parsing), parsing)


def test_what_the_parsers_can_is_told(tokenizer: Any) -> None:
    assert make_parsers(tokenizer, "hermes").abilities == ("tools",)
    assert make_parsers(tokenizer, "hermes", "qwen3").abilities == ("tools", "reasoning")
    assert make_parsers(tokenizer, "none", "qwen3").abilities == ("reasoning",)
    assert make_parsers(tokenizer, "none") is None
    assert make_parsers(tokenizer, "auto") is None  # a Llama that is not taught tools


def test_a_parser_that_the_tokenizer_has_no_marks_for_is_refused_by_name(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.tool_parser llama3_json.*python_tag"):
        make_parsers(tokenizer, "llama3_json")
    with pytest.raises(ConfigError, match=r"model\.reasoning_parser"):
        make_parsers(tokenizer, "auto", "mistral")


@pytest.mark.parametrize("key", ["tool_parser", "reasoning_parser"])
def test_an_unknown_parser_names_the_nearest(key: str) -> None:
    for known in ("none", "qwen3_xml" if key == "tool_parser" else "qwen3"):
        check_parser_names(Config.model_validate({"model": {key: known}}).model)
    with pytest.raises(ConfigError, match=rf"model\.{key}: vLLM has no parser 'mistrl'; did you mean 'mistral'"):
        check_parser_names(Config.model_validate({"model": {key: "mistrl"}}).model)
