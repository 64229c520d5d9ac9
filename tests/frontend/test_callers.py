"""Who asks, and in which session, as the backend is told."""

from __future__ import annotations

import pytest
from fake_keys import FakeKeys, record

from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.types import Caller

BODY = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


async def post(server, body: dict, **headers: str) -> tuple[int, dict]:
    url = server.url + "/v1/chat/completions"
    async with server.http.post(url, json={**BODY, **body}, headers=headers) as response:
        return response.status, await response.json()


async def test_without_keys_everybody_is_one_tenant_with_the_bodys_salt_and_priority(server):
    await post(server, {"cache_salt": "mine", "priority": -4})
    await post(server, {})
    assert server.backend.callers == [Caller(), Caller()]
    sent = [(request.cache_salt, request.priority) for request in server.backend.requests]
    assert sent == [("mine", -4), (None, 0)]


@pytest.mark.parametrize(
    ("body", "headers", "session"),
    [
        ({}, {}, None),
        ({"prompt_cache_key": "from body"}, {}, "from body"),
        ({"prompt_cache_key": None}, {}, None),
        ({}, {"X-Session-ID": "from-header"}, "from-header"),
        ({"prompt_cache_key": "from body"}, {"x-session-id": "from-header"}, "from-header"),
        ({}, {"X-Session-ID": "s" * 256}, "s" * 256),
    ],
)
async def test_the_session_comes_from_the_header_else_from_the_body(server, body, headers, session):
    assert (await post(server, body, **headers))[0] == 200
    assert [caller.session for caller in server.backend.callers] == [session]


@pytest.mark.parametrize("session", ["", "s" * 257, "schl\u00fcssel", "a\tb", 7, ["a"]])
async def test_a_body_that_names_no_good_session_is_refused(server, session):
    status, answer = await post(server, {"prompt_cache_key": session})
    assert (status, answer["error"]["param"]) == (400, "prompt_cache_key")
    assert "prompt_cache_key must be" in answer["error"]["message"]
    assert server.backend.requests == []


@pytest.mark.parametrize("session", ["", "s" * 257, "schl\u00fcssel", "a\tb"])
async def test_a_header_that_names_no_good_session_is_refused(server, session):
    status, answer = await post(server, {}, **{"X-Session-ID": session})
    assert (status, answer["error"]["param"]) == (400, "X-Session-ID")
    assert "the header X-Session-ID must be 1 to 256 printable ASCII characters" in answer["error"]["message"]
    assert server.backend.requests == []


async def test_every_sequence_of_a_request_has_its_tenants_priority_salt_and_caller(make_server):
    keys = KeyRing("sk-own", b"secret", FakeKeys(record("alice", "sk-a", priority=3)))
    server = await make_server(keys=keys)
    body = {"model": "mock", "prompt": ["one", "two"], "n": 2, "priority": -9}
    headers = {"Authorization": "Bearer sk-a", "X-Session-ID": "s"}
    async with server.http.post(server.url + "/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200
    assert server.backend.callers == [Caller(tenant="alice", session="s")] * 4
    assert {request.priority for request in server.backend.requests} == {3}
    (salt,) = {request.cache_salt for request in server.backend.requests}
    assert len(salt) == 32
