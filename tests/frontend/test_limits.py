from __future__ import annotations

import asyncio

import pytest
from fake_backend import FakeBackend, fail_after, hang_after
from fake_keys import FakeClock, FakeKeys, record

from hpcserve.errors import RateLimited, Unavailable
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.keys import Limits
from hpcserve.limits import Meter, TokenBucket


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def refusal(meter: Meter) -> RateLimited | None:
    try:
        meter.begin()
    except RateLimited as err:
        return err
    meter.end()
    return None


def test_a_bucket_holds_a_minutes_worth_and_refills_evenly(clock):
    bucket = TokenBucket(120, clock)
    assert bucket.wait_s(120) == 0
    bucket.take(120)
    assert bucket.wait_s(1) == pytest.approx(0.5)
    clock.now += 10
    assert (bucket.wait_s(20), bucket.wait_s(21)) == (0, pytest.approx(0.5))
    clock.now += 3600
    assert bucket.wait_s(120) == 0
    assert bucket.wait_s(121) > 0


def test_an_overdrawn_bucket_is_waited_for(clock):
    bucket = TokenBucket(60, clock)
    bucket.take(100)
    assert bucket.wait_s(1) == pytest.approx(41)
    bucket.take(-100)
    assert bucket.wait_s(60) == 0


def test_requests_a_minute_are_limited_on_average_and_refused_ones_do_not_count(clock):
    meter = Meter("alice", Limits(requests_per_minute=6), clock)
    assert [refusal(meter) for _ in range(6)] == [None] * 6
    error = refusal(meter)
    assert error is not None
    assert error.message == "the key of 'alice' is limited to 6 requests a minute; try again in 10 s"
    assert error.retry_after_s == pytest.approx(10)
    clock.now += 10
    assert refusal(meter) is None
    assert refusal(meter) is not None


async def test_tokens_count_when_they_are_known_and_delay_the_next_request(clock):
    meter = Meter("alice", Limits(tokens_per_minute=600), clock)
    async with meter.running():
        meter.count_tokens(400)
        meter.count_tokens(250)
    error = refusal(meter)
    assert error is not None
    assert "600 tokens a minute; try again in 6 s" in error.message
    clock.now += 5.2
    assert refusal(meter) is None


async def test_requests_at_once_are_limited_and_end_whatever_happens_to_them(clock):
    meter = Meter("alice", Limits(max_concurrent=2), clock)
    async with meter.running():
        async with meter.running():
            error = refusal(meter)
        assert error is not None
        assert "2 requests under way at once" in error.message
        with pytest.raises(ZeroDivisionError):
            async with meter.running():
                raise ZeroDivisionError
        assert refusal(meter) is None


async def test_without_limits_nothing_is_refused(clock):
    meter = Meter("alice", Limits(), clock)
    async with meter.running():
        meter.count_tokens(10**12)
        assert [refusal(meter) for _ in range(1000)] == [None] * 1000


# --- over HTTP ----------------------------------------------------------------------------------------------------

ALICE, BOB = {"Authorization": "Bearer sk-a"}, {"Authorization": "Bearer sk-b"}
BODY = {"model": "mock", "prompt": "hi"}


def ring(clock: FakeClock, **limits: int) -> KeyRing:
    return KeyRing("sk-own", b"s", FakeKeys(record("alice", "sk-a", **limits), record("bob", "sk-b")), clock=clock)


async def post(server, headers: dict, body: dict = BODY) -> tuple[int, str | None, dict]:
    async with server.http.post(server.url + "/v1/completions", json=body, headers=headers) as response:
        return response.status, response.headers.get("Retry-After"), await response.json()


async def test_over_the_limit_is_a_429_with_retry_after_that_reaches_no_engine(make_server, clock):
    server = await make_server(keys=ring(clock, requests_per_minute=4))
    statuses = [(await post(server, ALICE))[0] for _ in range(4)]
    status, retry_after, answer = await post(server, ALICE)
    assert (statuses, status, retry_after) == ([200] * 4, 429, "15")
    error = answer["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
    assert len(server.backend.requests) == 4
    assert (await post(server, BOB))[0] == 200, "others are not concerned"
    assert (await server.get("/v1/models", **ALICE))[0] == 200, "looking is free"
    clock.now += 15
    assert (await post(server, ALICE))[0] == 200


async def test_prompt_and_answer_count_as_tokens(make_server, clock):
    server = await make_server(keys=ring(clock, tokens_per_minute=6))
    _, _, answer = await post(server, ALICE, {**BODY, "prompt": [1, 2, 3, 4, 5]})
    assert answer["usage"]["total_tokens"] == 7
    status, retry_after, _ = await post(server, ALICE)
    assert (status, retry_after) == (429, "20")  # from 1 below nothing to 1, at one in 10 s


async def test_a_prompt_that_was_not_served_costs_no_tokens(make_server, clock):
    server = await make_server(FakeBackend(fail_after([], Unavailable("busy"))), ring(clock, tokens_per_minute=6))
    prompt = {**BODY, "prompt": [1, 2, 3, 4, 5]}
    assert [(await post(server, ALICE, prompt))[0] for _ in range(3)] == [503] * 3


async def test_a_stream_counts_as_under_way_until_it_ends_or_its_client_leaves(make_server, clock):
    server = await make_server(FakeBackend(hang_after(["one"])), ring(clock, max_concurrent=1))
    url = server.url + "/v1/completions"
    async with server.http.post(url, json={**BODY, "stream": True}, headers=ALICE) as stream:
        await stream.content.readany()
        status, retry_after, _ = await post(server, ALICE)
        assert (status, retry_after) == (429, "1")
        stream.close()
    await server.backend.until(lambda: server.backend.running == 0)
    server.backend.script = hang_after(["two"])
    again = asyncio.ensure_future(post(server, ALICE))
    await server.backend.until(lambda: server.backend.running == 1)
    again.cancel()
    await server.backend.until(lambda: server.backend.running == 0)


async def test_each_tenant_is_counted_by_name_and_no_key_shows(make_server, clock, caplog):
    caplog.set_level("INFO", logger="hpcserve")
    server = await make_server(keys=ring(clock, requests_per_minute=2))
    for _ in range(3):
        await post(server, ALICE)
    await post(server, {"Authorization": "Bearer sk-wrong"})
    async with server.http.get(server.url + "/metrics", headers={"x-api-key": "sk-own"}) as response:
        text = await response.text()
    for line in (
        'hpcserve_tenant_requests_total{tenant="alice"} 3.0',
        'hpcserve_tenant_rate_limited_total{tenant="alice"} 1.0',
        'hpcserve_tenant_prompt_tokens_total{tenant="alice"} 4.0',
        'hpcserve_tenant_cached_prompt_tokens_total{tenant="alice"} 6.0',
        'hpcserve_tenant_generation_tokens_total{tenant="alice"} 4.0',
    ):
        assert line in text.splitlines(), line
    assert "sk-" not in text
    lines = [each.getMessage() for each in caplog.records]
    assert sum(" tenant=alice " in line for line in lines) == 3
    assert not any("sk-" in line for line in lines)


async def test_without_keys_there_are_no_tenants_to_count(server):
    await server.complete()
    async with server.http.get(server.url + "/metrics") as response:
        assert "hpcserve_tenant_requests_total{" not in await response.text()
