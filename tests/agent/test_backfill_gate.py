"""The gate of an agent for offline requests, over an engine that is a load report."""

import asyncio

import msgspec
import pytest

from hpcserve.agent.backfill import Backfill
from hpcserve.router.backfill import BUSY_PASS_TOKENS, QUIET_S, BackfillRule
from hpcserve.types import EngineInfo, EngineRequest, LoadReport, RequestId, Sampling


class Engine:
    def __init__(self):
        self.report = LoadReport()
        self.now = 0.0
        self.backfill = Backfill(lambda: self.report, BackfillRule(max_share=0.5), clock=lambda: self.now)
        self.info = EngineInfo(
            engine="mock",
            model="m",
            block_size=32,
            num_kv_blocks=100,
            max_model_len=4096,
            max_batched_tokens=8192,
            max_num_seqs=8,
        )
        self.backfill.open(self.info)

    def online(self):
        self.backfill.note(EngineRequest(request_id=RequestId("a"), token_ids=[1], sampling=Sampling(max_tokens=1)))


@pytest.fixture
def engine():
    return Engine()


async def is_held(waiting):
    await asyncio.sleep(0.06)
    return not waiting.done()


async def test_an_idle_engine_takes_offline_requests_up_to_their_share_of_its_sequences(engine):
    for _ in range(4):
        await asyncio.wait_for(engine.backfill.admit(10), 10)
    fifth = asyncio.create_task(engine.backfill.admit(10))
    assert await is_held(fifth)
    engine.backfill.released()
    await asyncio.wait_for(fifth, 10)


async def test_online_requests_that_run_leave_less_to_offline_ones(engine):
    engine.report = LoadReport(num_running=4)
    waiting = asyncio.create_task(engine.backfill.admit(10))
    assert await is_held(waiting)
    engine.report = LoadReport(num_running=3)
    await asyncio.wait_for(waiting, 10)


async def test_nothing_offline_starts_while_the_cache_is_full(engine):
    engine.report = LoadReport(num_running=1, kv_usage=0.6)
    waiting = asyncio.create_task(engine.backfill.admit(10))
    assert await is_held(waiting)
    engine.report = LoadReport(num_running=1, kv_usage=0.4)
    await asyncio.wait_for(waiting, 10)


async def test_with_online_requests_about_few_offline_ones_run(engine):
    engine.report = LoadReport(num_running=1)
    engine.online()
    await asyncio.wait_for(engine.backfill.admit(10), 10)
    engine.report = LoadReport(num_running=2)
    waiting = asyncio.create_task(engine.backfill.admit(10))
    assert await is_held(waiting)
    engine.now += QUIET_S + 1
    await asyncio.wait_for(waiting, 10)


async def test_with_online_requests_about_offline_prompts_share_a_small_pass(engine):
    engine.backfill.open(msgspec.structs.replace(engine.info, max_num_seqs=64))
    engine.report = LoadReport(num_running=1)
    engine.online()
    await asyncio.wait_for(engine.backfill.admit(BUSY_PASS_TOKENS), 10)
    waiting = asyncio.create_task(engine.backfill.admit(10))
    assert await is_held(waiting)
    engine.report = LoadReport(num_running=2)  # computed
    await asyncio.wait_for(waiting, 10)


async def test_without_online_requests_for_a_while_passes_may_be_full(engine):
    engine.report = LoadReport(num_running=1)
    engine.online()
    engine.now += QUIET_S + 1
    await asyncio.wait_for(engine.backfill.admit(4000), 10)
    await asyncio.wait_for(engine.backfill.admit(4000), 10)


async def test_nothing_offline_starts_while_online_prompts_wait_in_the_engine(engine):
    engine.online()
    engine.report = LoadReport(num_running=1, num_waiting=1, waiting_tokens=900)
    waiting = asyncio.create_task(engine.backfill.admit(10))
    assert await is_held(waiting)
    engine.report = LoadReport(num_running=2)
    await asyncio.wait_for(waiting, 10)


async def test_whoever_stops_waiting_takes_no_place(engine):
    engine.report = LoadReport(num_running=4)
    waiting = asyncio.create_task(engine.backfill.admit(10))
    assert await is_held(waiting)
    waiting.cancel()
    await asyncio.wait((waiting,))
    engine.report = LoadReport(num_running=3)
    await asyncio.wait_for(engine.backfill.admit(1), 10)


async def test_the_gate_holds_a_place_for_as_long_as_a_request_runs(engine):
    engine.report = LoadReport(num_running=3)
    request = EngineRequest(request_id=RequestId("b"), token_ids=[1], sampling=Sampling(max_tokens=1))
    async with asyncio.timeout(10), engine.backfill.gate(request):
        waiting = asyncio.create_task(engine.backfill.admit(1))
        assert await is_held(waiting)
    await asyncio.wait_for(waiting, 10)
