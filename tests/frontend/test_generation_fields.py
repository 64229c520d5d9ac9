"""Fields of chats and completions beyond plain sampling: structure, truncation, token ids, running usage."""

from __future__ import annotations

import json

import pytest
from fake_backend import FakeBackend, speak

from hpcserve.config.models import ModelConfig
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.types import StructuredOutput

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SCHEMA_TEXT = '{"type":"object","properties":{"a":{"type":"integer"}}}'
TAG = {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}], "triggers": ["<a>"]}
STRUCTURES = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, StructuredOutput(kind="json_object")),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        StructuredOutput(kind="json_schema", value=SCHEMA_TEXT),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, StructuredOutput(kind="json_schema", value=SCHEMA_TEXT)),
    ({"structured_outputs": {"json": SCHEMA_TEXT}}, StructuredOutput(kind="json_schema", value=SCHEMA_TEXT)),
    ({"structured_outputs": {"regex": "a+"}}, StructuredOutput(kind="regex", value="a+")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutput(kind="choice", value='["a","b"]')),
    ({"structured_outputs": {"grammar": "root ::= x"}}, StructuredOutput(kind="grammar", value="root ::= x")),
    ({"structured_outputs": {"json_object": True, "regex": None}}, StructuredOutput(kind="json_object")),
    ({"structured_outputs": {"structural_tag": "{}"}}, StructuredOutput(kind="structural_tag", value="{}")),
]


@pytest.fixture
async def able(make_server):
    return await make_server(FakeBackend(can=("generate", "structured_output")))


@pytest.mark.parametrize(("fields", "expected"), STRUCTURES, ids=lambda value: str(value)[:60])
async def test_what_the_text_has_to_look_like_reaches_the_engine(able, fields, expected):
    assert (await able.chat(**fields))[0] == 200
    assert (await able.complete(**fields))[0] == 200
    assert [each.sampling.structured for each in able.backend.requests] == [expected, expected]


async def test_a_structural_tag_keeps_its_form(able):
    await able.chat(response_format=TAG)
    structured = able.backend.requests[0].sampling.structured
    assert (structured.kind, json.loads(structured.value)) == ("structural_tag", TAG)


async def test_two_structures_at_once_are_refused(able):
    format_ = {"type": "json_object"}
    status, answer = await able.chat(response_format=format_, structured_outputs={"regex": "a"})
    assert (status, answer["error"]["param"]) == (400, "structured_outputs")
    assert (await able.chat(response_format={"type": "text"}, structured_outputs={"regex": "a"}))[0] == 200


async def test_structure_is_refused_where_the_engine_cannot_see_to_it(server):
    status, answer = await server.complete(structured_outputs={"regex": "a"})
    assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")


TRUNCATIONS = [
    ({"truncate_prompt_tokens": 3}, b"cde"),
    ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, b"cde"),
    ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, b"abc"),
    ({"truncate_prompt_tokens": 9}, b"abcde"),
    ({"truncate_prompt_tokens": -1}, b"abcde"),
]


@pytest.mark.parametrize(("fields", "kept"), TRUNCATIONS, ids=lambda value: str(value)[:60])
async def test_a_prompt_is_cut_to_the_tokens_that_are_asked_for(server, fields, kept):
    for prompt in ("abcde", list(b"abcde")):
        status, _ = await server.complete(prompt=prompt, **fields)
        assert status == 200
        assert bytes(server.backend.requests[-1].token_ids) == kept


async def test_a_prompt_over_the_context_can_be_cut_to_what_fits(server):
    status, _ = await server.complete(prompt="x" * 3000, max_tokens=100, truncate_prompt_tokens=-1)
    assert status == 200
    assert len(server.backend.requests[0].token_ids) == 900
    await server.chat(messages=[{"role": "user", "content": "x" * 3000}], truncate_prompt_tokens=-1)
    request = server.backend.requests[1]
    assert (len(request.token_ids), request.sampling.max_tokens) == (999, 1)


async def test_the_tokenizers_special_tokens_outlive_the_cutting(tmp_path):
    import tokenizers

    from hpcserve.config.builtin_tokenizer import builtin_tokenizer_json

    encoder = tokenizers.Tokenizer.from_str(builtin_tokenizer_json())
    encoder.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 256)]
    )
    encoder.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(ModelConfig(path=tmp_path))
    assert await tokenizer.encode_text("abcde", limit=3) == [256, *b"de"]
    assert await tokenizer.encode_text("abcde", limit=6) == [256, *b"abcde"]
    assert await tokenizer.encode_text("abcde", limit=3, add_special_tokens=False) == list(b"cde")
    tokenizer.close()


async def test_token_ids_come_when_asked_for(server):
    _, answer = await server.chat(return_token_ids=True)
    prompt = server.backend.requests[0].token_ids
    assert (answer["prompt_token_ids"], answer["choices"][0]["token_ids"]) == (prompt, [0, 1])
    _, answer = await server.complete(return_token_ids=True, echo=True)
    choice = answer["choices"][0]
    assert (choice["text"], choice["prompt_token_ids"], choice["token_ids"]) == ("Hello world", list(b"hi"), [0, 1])


async def test_streamed_token_ids_come_with_their_deltas_and_the_prompts_with_the_first(server):
    chat = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "return_token_ids": True}
    first, *chunks = [json.loads(event) for event in (await server.stream(CHAT, chat))[:-1]]
    assert first["prompt_token_ids"] == server.backend.requests[0].token_ids
    assert [each["choices"][0]["token_ids"] for each in chunks] == [[0], [1]]
    text = {"model": "mock", "prompt": "hi", "return_token_ids": True}
    chunks = [json.loads(event)["choices"][0] for event in (await server.stream(COMPLETIONS, text))[:-1]]
    assert [each["prompt_token_ids"] for each in chunks] == [list(b"hi"), None]
    assert [each["token_ids"] for each in chunks] == [[0], [1]]


async def test_the_usage_so_far_comes_with_every_chunk_when_asked_for(server):
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path, body in ((CHAT, {"messages": [{"role": "user", "content": "hi"}]}), (COMPLETIONS, {"prompt": "hi"})):
        events = await server.stream(path, {"model": "mock", **body, **options})
        counts = [json.loads(event)["usage"]["completion_tokens"] for event in events[:-1]]
        assert counts == ([0, 1, 2, 2] if path == CHAT else [1, 2, 2])


async def test_tokens_of_logprobs_can_be_named_by_their_ids(server):
    _, answer = await server.chat(logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True)
    first = answer["choices"][0]["logprobs"]["content"][0]
    assert (first["token"], first["bytes"], first["top_logprobs"][0]["token"]) == (
        "token_id:0",
        list(b"Hello"),
        "token_id:0",
    )
    _, answer = await server.complete(logprobs=1, return_tokens_as_token_ids=True)
    logprobs = answer["choices"][0]["logprobs"]
    assert (logprobs["tokens"], logprobs["text_offset"]) == (["token_id:0", "token_id:1"], [0, 10])
    assert list(logprobs["top_logprobs"][0]) == ["token_id:0"]


async def test_an_echoed_prompt_comes_with_the_first_text_of_each_choice(make_server):
    server = await make_server(FakeBackend(speak(["a", "b"])))
    body = {"model": "mock", "prompt": ["x", "y"], "echo": True}
    chunks = [json.loads(event)["choices"][0] for event in (await server.stream(COMPLETIONS, body))[:-1]]
    for index, prompt in enumerate("xy"):
        mine = [each for each in chunks if each["index"] == index]
        assert [each["text"] for each in mine] == [prompt + "a", "b"]
        assert [each["prompt_token_ids"] for each in mine] == [[ord(prompt)], None]


async def test_the_last_message_can_be_continued(server, tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    await server.chat(messages=messages, continue_final_message=True)
    assert tokenizer.decode(server.backend.requests[0].token_ids).endswith("<|assistant|>Well, ")
