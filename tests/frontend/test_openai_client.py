"""The unmodified `openai` client against the frontend."""

from __future__ import annotations

import asyncio

import openai
import pytest
from fake_backend import FakeBackend, fail_after, hang_after, ready_status, speak, speak_seed

from hpcserve.errors import EngineError, Unavailable
from hpcserve.frontend.access.key_ring import KeyRing

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def connect(make_server):
    """Makes a server and an asynchronous client for it."""
    clients = []

    async def connect(script=None, key="sk-one"):
        server = await make_server(FakeBackend(script), keys=KeyRing("sk-one"))
        clients.append(openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0))
        return clients[-1], server

    yield connect
    for client in clients:
        await client.close()


async def test_the_synchronous_client_chats_and_streams(make_server):
    server = await make_server()

    def use() -> tuple[str, str, int]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model="mock", messages=MESSAGES)
            stream = client.chat.completions.create(
                model="mock", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            text, tokens = "", 0
            for chunk in stream:
                text += chunk.choices[0].delta.content or "" if chunk.choices else ""
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            return answer.choices[0].message.content or "", text, tokens

    assert await asyncio.to_thread(use) == ("Hello world", "Hello world", 2)


async def test_a_chat_has_content_usage_and_request_id(connect):
    client, server = await connect()
    answer = await client.chat.completions.create(model="mock", messages=MESSAGES, max_completion_tokens=5)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 2
    assert answer._request_id
    assert server.backend.requests[0].sampling.max_tokens == 5


async def test_an_answer_can_be_put_into_the_next_request(connect):
    client, _ = await connect()
    answer = await client.chat.completions.create(model="mock", messages=MESSAGES)
    again = await client.chat.completions.create(
        model="mock", messages=[*MESSAGES, answer.choices[0].message, *MESSAGES]
    )
    assert again.choices[0].message.content == "Hello world"


async def test_choices_and_logprobs(connect):
    client, _ = await connect(speak_seed())
    answer = await client.chat.completions.create(
        model="mock", messages=MESSAGES, n=2, seed=5, logprobs=True, top_logprobs=2
    )
    assert [choice.message.content for choice in answer.choices] == ["seed 5", "seed 6"]
    entry = answer.choices[0].logprobs.content[0]
    assert (entry.token, entry.logprob, len(entry.top_logprobs)) == ("seed 5", -0.5, 2)


async def test_the_clients_own_stream_helper_puts_the_answer_together(connect):
    client, _ = await connect()
    async with client.chat.completions.stream(
        model="mock", messages=MESSAGES, stream_options={"include_usage": True}
    ) as stream:
        events = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "content.delta" in events
    assert final.choices[0].message.content == "Hello world"
    assert final.usage.completion_tokens == 2


async def test_completions_with_extras(connect):
    client, server = await connect()
    answer = await client.completions.create(
        model="mock", prompt=["a", "b"], logprobs=1, extra_body={"top_k": 3, "ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].logprobs.tokens == ["Hello", " world"]
    assert server.backend.requests[0].sampling.top_k == 3
    stream = await client.completions.create(model="mock", prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello world"


async def test_models_are_listed_and_retrieved(connect):
    client, server = await connect()
    assert [model.id async for model in client.models.list()] == ["mock"]
    assert (await client.models.retrieve("mock")).owned_by == "hpcserve"
    server.backend.now = ready_status(workers=())
    assert [model.id async for model in client.models.list()] == []


async def test_errors_become_the_clients_exceptions(connect):
    client, server = await connect()
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1") as bad:
        await client.chat.completions.create(model="mock", messages=MESSAGES, max_tokens=-5)
    assert bad.value.param == "max_tokens"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        await client.completions.create(model="mock", prompt="x" * 2000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="not supported"):
        await client.chat.completions.create(
            model="mock", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()
    server.backend.script = fail_after([], Unavailable("nobody is left"))
    with pytest.raises(openai.InternalServerError, match="nobody is left") as unavailable:
        await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True)
    assert unavailable.value.status_code == 503


async def test_an_error_in_the_middle_of_a_stream_is_raised(connect):
    client, _ = await connect(fail_after(["one"], EngineError("the engine died")))
    stream = await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True)
    chunks = aiter(stream)
    assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "one"]
    with pytest.raises(openai.APIError, match="the engine died"):
        await anext(chunks)


async def test_closing_a_stream_early_aborts_the_request(connect):
    client, server = await connect(hang_after(["one"]))
    stream = await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await server.backend.until(lambda: len(server.backend.aborted) == 1)


async def test_a_hundred_streams_at_once(connect):
    client, server = await connect(speak(["x"] * 20))

    async def chat() -> str:
        stream = await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True)
        return "".join([chunk.choices[0].delta.content async for chunk in stream])

    assert await asyncio.gather(*(chat() for _ in range(100))) == ["x" * 20] * 100
    assert server.backend.running == 0
