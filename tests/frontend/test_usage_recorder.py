"""What tenants use is written down: in time, once, and after a failure too."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping

import pytest
from fake_keys import FakeKeys, record

from hpcserve.errors import DeploymentError
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.access.usage_recorder import UsageRecorder
from hpcserve.observability.tenant_metrics import TenantCounts
from hpcserve.usage import Usage


class FakeSink:
    """Totals in memory; `broken` refuses them."""

    def __init__(self) -> None:
        self.totals: dict[str, Usage] = {}
        self.broken = ""
        self.num_calls = 0

    def add(self, used: Mapping[str, Usage]) -> None:
        self.num_calls += 1
        if self.broken:
            raise DeploymentError(self.broken)
        for name, each in used.items():
            self.totals[name] = self.totals.get(name, Usage()).plus(each)

    async def called(self, times: int) -> None:
        async with asyncio.timeout(5):
            while self.num_calls < times:
                await asyncio.sleep(0)


@pytest.fixture
def counts() -> defaultdict[str, TenantCounts]:
    return defaultdict(TenantCounts)


def use(counts: Mapping[str, TenantCounts], tenant: str, now: float) -> None:
    counts[tenant].count_request(is_rate_limited=False, now=now)
    counts[tenant].generated_tokens += 10


async def test_what_was_used_is_written_at_intervals_and_at_the_end_and_never_twice(counts):
    sink = FakeSink()
    async with UsageRecorder(counts, sink, interval_s=0.01):
        use(counts, "alice", 1.0)
        await sink.called(1)
        use(counts, "alice", 2.0)
        use(counts, "bob", 3.0)
    assert sink.totals == {
        "alice": Usage(requests=2, generated_tokens=20, first_used=1.0, last_used=2.0),
        "bob": Usage(requests=1, generated_tokens=10, first_used=3.0, last_used=3.0),
    }


async def test_nothing_is_written_where_nothing_was_used(counts):
    sink = FakeSink()
    async with UsageRecorder(counts, sink, interval_s=60):
        pass
    assert sink.num_calls == 0


async def test_what_could_not_be_written_is_written_with_the_next_and_complained_about_once(counts, caplog):
    sink = FakeSink()
    sink.broken = "no space left"
    async with UsageRecorder(counts, sink, interval_s=0.01):
        use(counts, "alice", 1.0)
        await sink.called(3)
        sink.broken = ""
    assert sink.totals["alice"].requests == 1
    assert [each.getMessage() for each in caplog.records] == ["what tenants use is not recorded: no space left"]


async def test_a_request_is_counted_with_its_tokens_and_its_refusals(make_server):
    keys = KeyRing("sk-own", source=FakeKeys(record("alice", "sk-a", requests_per_minute=1)))
    server = await make_server(keys=keys)
    server.http.headers["x-api-key"] = "sk-a"
    assert [(await server.complete())[0] for _ in range(2)] == [200, 429]
    sink = FakeSink()
    async with UsageRecorder(server.metrics.tenants, sink):
        pass
    used = sink.totals["alice"]
    assert (used.requests, used.rate_limited, used.generated_tokens) == (2, 1, 2)
    assert used.prompt_tokens > 0
    assert used.first_used <= used.last_used
