"""Equal prompts of two tenants, through HTTP, the router and the mock engines: what one of them learns of the other."""

from __future__ import annotations

import pytest
from fake_keys import FakeKeys, record
from routed_mocks import RoutedMocks

from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.kv.hashing import hash_blocks

PROMPT = list(range(1, 201))  # 6 full blocks of 32
WHOLE = 192


class Tenants:
    def __init__(self, server, backend: RoutedMocks) -> None:
        self._server = server
        self.backend = backend

    async def hits(self, key: str, **fields: object) -> tuple[int, int]:
        """Send the prompt; return its hits as the client is told of them, and as the router expected them."""
        body = {"model": "mock", "prompt": PROMPT, "max_tokens": 2, **fields}
        headers = {"Authorization": f"Bearer {key}"}
        async with self._server.http.post(self._server.url + "/v1/completions", json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            usage = (await response.json())["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"], self.backend.assignments[-1].cached_tokens


@pytest.fixture
async def make_tenants(make_server, tmp_path):
    backends = []

    async def make(secret: bytes | None) -> Tenants:
        backend = RoutedMocks(tmp_path)
        backends.append(backend)
        await backend.start()
        keys = KeyRing("sk-own", secret, FakeKeys(record("alice", "sk-a"), record("bob", "sk-b")))
        return Tenants(await make_server(backend, keys), backend)

    yield make
    for backend in backends:
        await backend.stop()


async def test_tenants_find_their_own_prefixes_and_nobody_elses(make_tenants):
    tenants = await make_tenants(b"secret")
    for key in ("sk-a", "sk-b", "sk-own"):
        assert await tenants.hits(key) == (0, 0)
    for key in ("sk-a", "sk-b", "sk-own"):
        assert await tenants.hits(key) == (WHOLE, WHOLE)


async def test_a_salt_in_the_body_parts_a_tenants_own_prompts_and_finds_nobody_elses(make_tenants):
    tenants = await make_tenants(b"secret")
    await tenants.hits("sk-a")
    await tenants.hits("sk-a", cache_salt="x")
    of_alice = [request.cache_salt for request in tenants.backend.requests]
    for salt in ("alice", "x", "", *of_alice):
        if salt:
            assert await tenants.hits("sk-b", cache_salt=salt) == (0, 0)
    assert await tenants.hits("sk-a", cache_salt="x") == (WHOLE, WHOLE)
    assert await tenants.hits("sk-a", cache_salt="y") == (0, 0)


async def test_shared_prefixes_are_found_by_all_who_use_one_salt(make_tenants):
    tenants = await make_tenants(None)
    assert await tenants.hits("sk-a") == (0, 0)
    assert await tenants.hits("sk-b") == (WHOLE, WHOLE)
    assert await tenants.hits("sk-b", cache_salt="mine") == (0, 0)
    assert await tenants.hits("sk-a", cache_salt="mine") == (WHOLE, WHOLE)


async def test_the_router_cannot_be_asked_with_names_of_another_tenants_blocks(make_tenants):
    tenants = await make_tenants(b"secret")
    await tenants.hits("sk-a")
    alices, unsalted = tenants.backend.routes[0], hash_blocks(PROMPT, 32)
    assert set(alices.block_hashes).isdisjoint(unsalted)


async def test_routing_is_told_tenant_and_session(make_tenants):
    tenants = await make_tenants(b"secret")
    await tenants.hits("sk-a", prompt_cache_key="thread 7")
    await tenants.hits("sk-own")
    callers = [(route.caller.tenant, route.caller.session) for route in tenants.backend.routes]
    assert callers == [("alice", "thread 7"), ("default", None)]
