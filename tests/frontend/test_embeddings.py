"""/v1/embeddings: what engines are asked for, what clients get, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import struct

import msgspec
import openai
import pytest
from fake_backend import CONTEXT, FakeBackend, embed, fail_after, speak
from fake_keys import FakeKeys, record

from hpcserve.errors import Unavailable
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.replies.embeddings import Embeddings

PATH = "/v1/embeddings"


@pytest.fixture
async def server(make_server):
    return await make_server(FakeBackend(embed(), can=("embed",)))


@pytest.fixture
async def client(server):
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
async def test_the_openai_client_embeds_texts(client, encoding):
    answer = await client.embeddings.create(model="mock", input=["hi", "you"], **encoding)
    assert [each.index for each in answer.data] == [0, 1]
    vectors = [each.embedding for each in answer.data]
    if encoding.get("encoding_format") == "base64":  # asked for, so it is not decoded
        vectors = [list(struct.unpack("<2f", base64.b64decode(each))) for each in vectors]
    assert vectors == [[2.0, 104.0], [3.0, 121.0]]
    assert (answer.model, answer.object) == ("mock", "list")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (5, 5)


async def test_the_synchronous_client_embeds(server):
    def use() -> list[float]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            return client.embeddings.create(model="mock", input="hi").data[0].embedding

    assert await asyncio.to_thread(use) == [2.0, 104.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hi", [[104, 105]]),
        (["hi", "h"], [[104, 105], [104]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
async def test_inputs_come_in_four_forms(server, given, expected):
    status, _ = await server.post(PATH, {"model": "mock", "input": given})
    assert status == 200
    assert sorted(each.token_ids for each in server.backend.requests) == sorted(expected)
    assert all(each.embeds and each.sampling.max_tokens == 1 for each in server.backend.requests)


async def test_the_reply_has_exactly_the_fields_that_are_described(make_server):
    server = await make_server(FakeBackend(embed(cached=1), can=("embed",)))
    for encoding in ("float", "base64"):
        body = {"model": "mock", "input": ["hi", "you"], "encoding_format": encoding}
        async with server.http.post(server.url + PATH, json=body) as response:
            content = await response.read()
        decoded = msgspec.json.decode(content, type=Embeddings)
        assert msgspec.json.encode(decoded) == content
        assert decoded.usage.prompt_tokens_details.cached_tokens == 2


async def test_long_inputs_are_refused_unless_they_may_be_cut(server):
    text = "a" * CONTEXT + "b"
    status, answer = await server.post(PATH, {"model": "mock", "input": ["x", text]})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "input 1 has 1001" in answer["error"]["message"]
    assert server.backend.requests == []
    for side, last in ((None, "a"), ("right", "a"), ("left", "b")):
        cut = {"truncate_prompt_tokens": -1, "truncation_side": side}
        for given in (text, list(text.encode())):
            status, _ = await server.post(PATH, {"model": "mock", "input": given, **cut})
            assert status == 200
            token_ids = server.backend.requests[-1].token_ids
            assert (len(token_ids), token_ids[-1]) == (CONTEXT, ord(last))
    status, _ = await server.post(PATH, {"model": "mock", "input": "a" * CONTEXT})
    assert status == 200  # nothing is generated, so that no room is needed


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": []}, "input", "must be a string, a list of strings"),
        ({"input": ""}, "input", "empty"),
        ({"input": ["x"] * 2049}, "input", "2049 inputs are over 2048"),
        ({"input": [99999]}, "input", "not in the vocabulary"),
        ({"input": "x", "dimensions": 8}, "dimensions", "not supported; leave it out"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "must be 'float' or 'base64'"),
        ({"input": "x", "truncate_prompt_tokens": 1001}, "truncate_prompt_tokens", "from 1 to 1000"),
        ({"input": "x", "dimension": 8}, "dimension", "unknown field"),
        ({}, "input", "input is required"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_cannot_be_embedded_is_refused(server, fields, param, message):
    status, answer = await server.post(PATH, {"model": "mock", **fields})
    assert (status, answer["error"]["param"]) == (400, param)
    assert message in answer["error"]["message"]
    assert server.backend.requests == []


async def test_engines_that_generate_do_not_embed(make_server):
    server = await make_server()
    status, answer = await server.post(PATH, {"model": "mock", "input": "x"})
    assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")
    assert '"runner": "pooling"' in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_engines_that_embed_do_not_generate(server, path):
    messages = {"messages": [{"role": "user", "content": "x"}]}
    fields = {"/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x"}}.get(path, messages)
    extra = {"max_tokens": 5} if path == "/v1/messages" else {}
    status, answer = await server.post(path, {"model": "mock", **fields, **extra})
    assert status == 400
    assert "use /v1/embeddings" in answer["error"]["message"]


async def test_one_failing_input_fails_the_request(server):
    speaks = embed()

    async def script(request, on_output):
        if request.token_ids == [104]:
            await fail_after([], Unavailable("nobody is left"))(request, on_output)
        await speaks(request, on_output)

    server.backend.script = script
    status, answer = await server.post(PATH, {"model": "mock", "input": ["x", "h"]})
    assert (status, answer["error"]["message"]) == (503, "nobody is left")


async def test_an_engine_without_an_answer_is_a_failure(server):
    server.backend.script = speak([""])
    status, answer = await server.post(PATH, {"model": "mock", "input": "x"})
    assert (status, answer["error"]["code"]) == (500, "engine_error")


async def test_tokens_are_counted_for_the_key_and_in_the_metrics(make_server):
    keys = FakeKeys(record("alice", "sk-alice", tokens_per_minute=5))
    server = await make_server(FakeBackend(embed(), can=("embed",)), keys=KeyRing("sk-one", source=keys))
    headers = {"Authorization": "Bearer sk-alice"}
    for expected in (200, 429):
        body = {"model": "mock", "input": ["hello", "world"], "cache_salt": "mine", "priority": 2}
        async with server.http.post(server.url + PATH, json=body, headers=headers) as response:
            assert response.status == expected
    assert server.metrics.prompt_tokens == 10
    assert server.metrics.generation_tokens == 0
    assert server.metrics.tenants["alice"].prompt_tokens == 10
    assert {each.tenant for each in server.backend.callers} == {"alice"}
    assert {(each.cache_salt, each.priority) for each in server.backend.requests} == {("mine", 2)}
