"""What the unmodified `anthropic` client raises."""

from __future__ import annotations

import anthropic
import pytest
from fake_backend import FakeBackend, fail_after
from fake_keys import FakeKeys, record
from message_scripts import HI

from hpcserve.errors import EngineError, Overloaded, Unavailable
from hpcserve.frontend.access.key_ring import KeyRing


async def test_errors_become_the_clients_exceptions(connect_anthropic):
    client, server = await connect_anthropic()
    ask = {"model": "mock", "max_tokens": 5, "messages": HI}
    with pytest.raises(anthropic.BadRequestError, match="max_tokens must be at least 1") as bad:
        await client.messages.create(**{**ask, "max_tokens": 0})
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id == bad.value.body["request_id"]
    with pytest.raises(anthropic.NotFoundError) as missing:
        await client.messages.create(**{**ask, "model": "claude-9"})
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        await client.with_options(api_key="wrong").messages.create(**ask)
    assert unknown.value.type == "authentication_error"
    assert await client.with_options(api_key=None, auth_token="sk-one").messages.create(**ask)
    server.backend.script = fail_after([], Unavailable("nobody is left"))
    with pytest.raises(anthropic.InternalServerError, match="nobody is left") as unavailable:
        await client.messages.create(**ask, stream=True)
    assert (unavailable.value.status_code, unavailable.value.type) == (503, "api_error")
    server.backend.script = fail_after([], Overloaded("too many wait"))
    with pytest.raises(anthropic.InternalServerError, match="too many wait") as overloaded:
        await client.messages.create(**ask)
    assert (overloaded.value.status_code, overloaded.value.type) == (529, "overloaded_error")
    assert overloaded.value.response.headers["retry-after"]
    server.backend.script = fail_after([], ZeroDivisionError("secret"))
    with pytest.raises(anthropic.InternalServerError, match="internal error") as broken:
        await client.messages.create(**ask)
    assert broken.value.type == "api_error"
    assert "secret" not in str(broken.value.body)


async def test_a_limit_that_is_used_up_is_a_rate_limit_error(make_server):
    keys = KeyRing("sk-owner", b"s", FakeKeys(record("one", "sk-one", requests_per_minute=1)))
    server = await make_server(FakeBackend(), keys=keys)
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="sk-one", max_retries=0) as client:
        await client.messages.create(model="mock", max_tokens=5, messages=HI)
        with pytest.raises(anthropic.RateLimitError) as limited:
            await client.messages.create(model="mock", max_tokens=5, messages=HI)
    assert limited.value.type == "rate_limit_error"
    assert int(limited.value.response.headers["retry-after"]) > 0


async def test_an_error_in_the_middle_of_a_stream_is_raised(connect_anthropic):
    client, _ = await connect_anthropic(FakeBackend(fail_after(["one"], EngineError("the engine died"))))
    with pytest.raises(anthropic.APIStatusError, match="the engine died") as raised:
        async with client.messages.stream(model="mock", max_tokens=5, messages=HI) as stream:
            await stream.get_final_message()
    assert raised.value.type == "api_error"
    assert raised.value.body["request_id"]


async def test_a_body_over_the_limit_and_a_wrong_route_have_errors_in_the_same_form(connect_anthropic):
    client, server = await connect_anthropic(max_body_mb=0.001)
    with pytest.raises(anthropic.APIStatusError) as large:
        await client.messages.create(model="mock", max_tokens=5, messages=[{"role": "user", "content": "x" * 2000}])
    assert (large.value.status_code, large.value.type) == (413, "request_too_large")
    async with server.http.get(f"{server.url}/v1/messages", headers={"x-api-key": "sk-one"}) as response:
        assert response.status == 405
        assert (await response.json())["error"]["type"] == "invalid_request_error"
    async with server.http.post(f"{server.url}/v1/messages/batches", headers={"x-api-key": "sk-one"}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["type"] == "not_found_error"
