from __future__ import annotations

import asyncio
import json

import pytest

MESSAGES = [{"role": "user", "content": "hi"}]

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

CHAT_ERRORS = [
    ({"max_tokens": -5}, "max_tokens", "max_tokens must be at least 1, got -5"),
    ({"max_tokens": "5"}, "max_tokens", "max_tokens must be an integer, got '5'"),
    ({"max_tokens": True}, "max_tokens", "max_tokens must be an integer, got True"),
    ({"max_tokens": 1.5}, "max_tokens", "max_tokens must be an integer, got 1.5"),
    ({"max_tokens": 10**30}, "max_tokens", "set max_tokens to at most"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "send one of them"),
    ({"temperature": -1}, "temperature", "temperature must be at least 0, got -1"),
    ({"temperature": "hot"}, "temperature", "temperature must be a number, got 'hot'"),
    ({"top_p": 0}, "top_p", "top_p must be greater than 0, got 0"),
    ({"top_p": 1.1}, "top_p", "top_p must be at most 1"),
    ({"n": 0}, "n", "n must be at least 1, got 0"),
    ({"n": 100000}, "n", "n must be at most 128"),
    ({"stop": 5}, "stop", "stop must be a list, got 5"),
    ({"stop": [""]}, "stop[0]", "stop[0] must not be empty"),
    ({"seed": 2**64}, "seed", "seed must be at most"),
    ({"top_logprobs": 5}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "keys are token ids from 0 to 261"),
    ({"logit_bias": {"65": 101}}, "logit_bias.65", "at most 100"),
    ({"stream": "yes"}, "stream", "stream must be true or false, got 'yes'"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown field"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens", "at most max_tokens (5)"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": None}, "messages", "messages is required"),
    ({"messages": "hi"}, "messages", "messages must be a list, got 'hi'"),
    ({"messages": ["hi"]}, "messages[0]", "must be an object"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "messages[0] needs content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'system'"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "use role 'tool'"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]}, "messages[0]", "takes no tool_call_id"),
    ({"messages": [{"role": "user", "content": "x", "reasoning": "a"}]}, "messages[0]", "takes no reasoning"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string or a list of text parts"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
        "'image_url'; only text",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
        "messages[0].tool_calls[0].function",
        "messages[0].tool_calls[0].function is required",
    ),
    ({"max_token": 5}, "max_token", "did you mean 'max_tokens'"),
    ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "tools[0].function is required"),
    ({"tools": []}, "tools", "at least 1 item"),
    ({"tools": TOOLS}, "tools", "set model.tool_parser"),
    ({"tools": TOOLS, "tool_choice": "required"}, "tools", "set model.tool_parser"),
    ({"tools": TOOLS, "tool_choice": {"function": {"name": "g"}}}, "tool_choice", "'g', which is none of the tools"),
    ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice", "'none', 'auto', 'required'"),
    ({"tools": TOOLS, "tool_choice": {"name": "f"}}, "tool_choice", '"function": {"name": "my_function"}'),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"response_format": {"type": "json_object"}}, "response_format", "no structured output"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "needs json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "is required",
    ),
    ({"response_format": {"type": "structural_tag"}}, "response_format", "format, or structures and triggers"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs", "no structured output"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "must be a JSON Schema"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort", "'minimal'"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", "cannot both"),
    ({"allowed_token_ids": [262]}, "allowed_token_ids", "from 0 to 261"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "at least 1 item"),
    ({"bad_words": [""]}, "bad_words[0]", "must not be empty"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1 or from 1 to 999"),
    ({"truncate_prompt_tokens": 1000}, "truncate_prompt_tokens", "-1 or from 1 to 999"),
    ({"prompt_logprobs": 1}, "prompt_logprobs", "not supported"),
    ({"chat_template": "x"}, "chat_template", "not supported"),
    ({"guided_json": {}}, "guided_json", "structured_outputs"),
    ({"modalities": ["audio"]}, "modalities", "not supported"),
    ({"audio": {"voice": "x"}}, "audio", "not supported"),
    ({"store": True}, "store", "not supported"),
    ({"model": 5}, "model", "model must be a string"),
    ({"model": None}, "model", "model is required"),
    ({"cache_salt": ""}, "cache_salt", "must not be empty"),
]


@pytest.mark.parametrize(("fields", "param", "part"), CHAT_ERRORS, ids=lambda value: str(value)[:40])
async def test_a_wrong_chat_field_is_named_with_what_to_change(server, fields, param, part):
    status, answer = await server.chat(**fields)
    error = answer["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert part in error["message"]
    assert server.backend.requests == []


COMPLETION_ERRORS = [
    ({"prompt": None}, "prompt", "prompt is required"),
    ({"prompt": ""}, "prompt", "at least one token"),
    ({"prompt": []}, "prompt", "a string, a list of strings"),
    ({"prompt": ["a", 5]}, "prompt", "a string, a list of strings"),
    ({"prompt": [[]]}, "prompt", "a string, a list of strings"),
    ({"prompt": [-1]}, "prompt", "a string, a list of strings"),
    ({"prompt": [True]}, "prompt", "a string, a list of strings"),
    ({"prompt": [262]}, "prompt", "token id 262 is not in the vocabulary of 262"),
    ({"prompt": ["a"] * 100, "n": 100}, "prompt", "send fewer at once"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"best_of": 3}, "best_of", "not supported unless it equals n"),
    ({"echo": True, "logprobs": 1}, "logprobs", "echo"),
    ({"logprobs": True}, "logprobs", "an integer"),
    ({"messages": MESSAGES}, "messages", "unknown field 'messages'"),
]


@pytest.mark.parametrize(("fields", "param", "part"), COMPLETION_ERRORS, ids=lambda value: str(value)[:40])
async def test_a_wrong_completion_field_is_named_with_what_to_change(server, fields, param, part):
    status, answer = await server.complete(**fields)
    assert (status, answer["error"]["param"]) == (400, param)
    assert part in answer["error"]["message"]
    assert server.backend.requests == []


async def test_known_fields_that_ask_for_nothing_are_accepted(server):
    status, answer = await server.chat(
        tools=TOOLS,
        tool_choice="none",
        response_format={"type": "text"},
        modalities=["text"],
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        stop=None,
        max_tokens=None,
    )
    assert status == 200, answer
    status, answer = await server.complete(best_of=1, suffix=None, use_beam_search=False, length_penalty=1.0)
    assert status == 200, answer


async def test_an_unknown_model_is_not_found_and_the_served_one_is_named(server):
    status, answer = await server.chat(model="gpt-9")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "'mock'" in answer["error"]["message"]


async def test_prompt_and_output_over_the_context_are_refused_with_both_numbers(server):
    status, answer = await server.complete(prompt=[65] * 600, max_tokens=500)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert all(number in answer["error"]["message"] for number in ("1000", "600", "500", "400"))
    status, answer = await server.complete(prompt=[65] * 1000)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert "at most 999" in answer["error"]["message"]


async def test_a_template_that_refuses_the_messages_is_a_bad_request(make_server):
    from hpcserve.config.builtin_tokenizer import builtin_tokenizer_json
    from hpcserve.frontend.prompts.chat_template import ChatTemplate
    from hpcserve.frontend.prompts.tokenizer import Tokenizer, _parse

    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    tokenizer = Tokenizer(_parse(builtin_tokenizer_json(), "test"), template)
    server = await make_server(own_tokenizer=tokenizer)
    status, answer = await server.chat()
    tokenizer.close()
    assert (status, answer["error"]["param"]) == (400, "messages")
    assert "roles must alternate" in answer["error"]["message"]


BROKEN_BODIES = {
    "empty": b"",
    "cut short": b'{"model": "mo',
    "a list": b"[1, 2]",
    "a string": b'"x"',
    "null": b"null",
    "invalid utf-8": b'{"model": "\xff"}',
    "lone surrogate": b'{"model": "\\ud800 "}',
    "NaN": b'{"temperature": NaN}',
    "over all bounds": b'{"temperature": 1e999}',
    "too many digits": b'{"max_tokens": ' + b"9" * 5000 + b"}",
    "nested deeply": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_broken_body_is_a_bad_request(server, path, name):
    headers = {"Content-Type": "application/json"}
    async with server.http.post(server.url + path, data=BROKEN_BODIES[name], headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_deeply_nested_values_of_a_known_field_are_handled(server):
    nested: object = 1
    for _ in range(300):
        nested = [nested]
    for field in ("metadata", "stop", "logit_bias", "messages", "unknown"):
        status, _ = await server.chat(**{field: nested})
        assert status == 400


async def test_a_body_that_is_not_declared_as_json_is_refused(server):
    async with server.http.post(server.url + "/v1/completions", data=b'{"model": "mock"}') as response:
        assert response.status == 400
        assert "Content-Type" in (await response.json())["error"]["message"]


async def test_a_large_body_is_refused_before_it_is_read(make_server):
    server = await make_server(max_body_mb=1)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: 100000000\r\n\r\n")  # and not one byte of the body
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


async def test_a_large_body_is_refused_before_it_is_sent_when_the_client_asks_first(make_server):
    server = await make_server(max_body_mb=1)
    for length, expected in ((100_000_000, b"HTTP/1.1 413 "), (19, b"HTTP/1.1 100 ")):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode())
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(expected)
        writer.close()
        await writer.wait_closed()


async def test_a_large_body_without_a_declared_length_is_refused_while_it_is_read(make_server):
    server = await make_server(max_body_mb=1)

    async def pieces():
        for _ in range(40):
            yield b"x" * 50_000

    headers = {"Content-Type": "application/json"}
    async with server.http.post(server.url + "/v1/completions", data=pieces(), headers=headers) as response:
        assert response.status == 413
        assert "1 MB" in (await response.json())["error"]["message"]


async def test_an_unknown_route_is_not_found_in_openais_form(server):
    for path in ("/v2/x", "/v1/completions/x"):
        status, answer = await server.get(path)
        assert status == 404
        assert answer["error"]["type"] == "invalid_request_error"


async def test_a_wrong_method_is_told_which_one_is_right(server):
    async with server.http.get(server.url + "/v1/chat/completions") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert "use POST" in (await response.json())["error"]["message"]
    async with server.http.delete(server.url + "/v1/models") as response:
        assert response.status == 405
        assert "GET" in response.headers["Allow"]


async def test_the_request_id_comes_back_or_is_made(server):
    async with server.http.get(server.url + "/live", headers={"x-request-id": "my-1"}) as response:
        assert response.headers["x-request-id"] == "my-1"
    async with server.http.get(server.url + "/nowhere", headers={"x-request-id": "x" * 1000}) as response:
        assert len(response.headers["x-request-id"]) == 32
    body = {"model": "mock", "messages": MESSAGES, "stream": True}
    headers = {"x-request-id": "my-2"}
    async with server.http.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
        assert response.headers["x-request-id"] == "my-2"
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert json.loads((await response.text()).split("\n\n")[0][6:])["object"] == "chat.completion.chunk"
