import asyncio
import gc
import json
import time

import msgspec
import pytest

from hpcserve.config.models import Config
from hpcserve.engine.mock.engine import MockEngine
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.protocol import EngineContext
from hpcserve.errors import EngineError
from hpcserve.types import (
    BlocksStored,
    ChatParsing,
    EngineRequest,
    RequestId,
    Role,
    Sampling,
    StructuredOutput,
    WorkerId,
)


@pytest.fixture
async def make(tmp_path):
    """Start an engine; all are stopped at the end."""
    engines = []

    async def start(on_events=lambda events: None, model=None, **mock):
        config = Config.model_validate(
            {"engine": {"kind": "mock", "mock": {"speedup": "inf", **mock}}, "model": model or {}}
        )
        context = EngineContext(worker=WorkerId("w"), role=Role.BOTH, host="127.0.0.1", moves_kv=True, scratch=tmp_path)
        engine = MockEngine(config, context)
        engines.append(engine)
        engine.info = await engine.start(on_events)
        return engine

    yield start
    for engine in engines:
        await engine.stop()


def request(name="r", prompt=50, max_tokens=5, **fields):
    tokens = list(range(prompt)) if isinstance(prompt, int) else prompt
    return EngineRequest(
        request_id=RequestId(name), token_ids=tokens, sampling=Sampling(max_tokens=max_tokens), **fields
    )


async def run(engine, asked):
    return [output async for output in engine.generate(asked)]


def tokens(outputs):
    return [token for output in outputs for token in output.token_ids]


async def test_it_says_what_it_is(make):
    engine = await make(num_kv_blocks=100, model={"name": "toy"})
    info = engine.info
    assert (info.engine, info.model, info.kv_transport) == ("mock", "toy", "mock")
    assert (info.block_size, info.num_kv_blocks, info.max_model_len) == (32, 100, 3200)


async def test_many_requests_at_once_all_get_their_tokens(make):
    engine = await make(max_num_seqs=8)
    results = await asyncio.gather(
        *(run(engine, request(f"r{i}", prompt=[i] * 40, max_tokens=i + 1)) for i in range(30))
    )
    for i, outputs in enumerate(results):
        assert len(tokens(outputs)) == i + 1
        assert [output.finish_reason for output in outputs] == [None] * i + ["length"]
        assert [output.cached_tokens is None for output in outputs] == [False] + [True] * i
    load = engine.load()
    assert (load.num_running, load.num_waiting, load.kv_usage) == (0, 0, 0)
    assert load.prompt_tokens_total == 30 * 40
    assert load.generated_tokens_total == sum(range(1, 31))


async def test_without_delay_others_get_their_turn(make):
    engine = await make()
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await run(engine, request(max_tokens=500))
    ticking.cancel()
    assert ticks >= 500


async def test_real_time_is_simulated_time_over_the_speedup(make):
    engine = await make(speedup=100.0, num_kv_blocks=1000)
    elapsed = []
    for number in range(3):  # what else the machine does may hold one of them up
        started = time.perf_counter()
        await run(engine, request(f"r{number}", prompt=[number + 1] * 3200, max_tokens=1500))
        elapsed.append(time.perf_counter() - started)
    model = TimingModel()
    blocks = [-(-(3200 + i) // 32) / 1000 for i in range(1500)]
    simulated = model.prefill_s(3200) + sum(map(model.decode_s, blocks))
    assert 0.99 <= min(elapsed) / (simulated / 100) < 2.0


async def test_idle_time_is_not_saved_up(make):
    engine = await make(speedup=10.0)
    await run(engine, request("before", max_tokens=1))
    await asyncio.sleep(0.1)
    started = time.perf_counter()
    await run(engine, request(prompt=[3] * 3000, max_tokens=10))
    assert time.perf_counter() - started >= (TimingModel().prefill_s(3000) + 9 * TimingModel().decode_s(0.0)) / 10


async def test_aborting_ends_the_iterator_and_frees_the_blocks(make):
    engine = await make(speedup=1.0)
    running = asyncio.create_task(run(engine, request(max_tokens=10_000)))
    await until(lambda: engine.load().generated_tokens_total >= 1)
    await engine.abort(RequestId("r"))
    outputs = await running
    assert outputs[-1].finish_reason == "abort"
    assert engine.load().kv_usage == 0
    await engine.abort(RequestId("r"))
    await engine.abort(RequestId("unknown"))


async def test_closing_the_iterator_aborts(make):
    engine = await make(speedup=10.0)
    iterator = engine.generate(request(max_tokens=10_000))
    assert (await anext(iterator)).finish_reason is None
    assert engine.load().num_running == 1
    await iterator.aclose()
    assert engine.load().num_running == 0


async def test_cancelling_the_reader_aborts(make):
    engine = await make(speedup=1.0)
    reader = asyncio.create_task(run(engine, request(max_tokens=10_000)))
    await until(lambda: engine.load().num_running == 1)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    gc.collect()
    await until(lambda: engine.load().num_running == 0)


async def test_an_id_can_be_used_again_right_after_an_abort(make):
    engine = await make(speedup=10.0)
    expected = tokens(await run(engine, request("other", prompt=[7, 8, 9], max_tokens=4)))
    first = asyncio.create_task(run(engine, request(max_tokens=10_000)))
    await until(lambda: engine.load().generated_tokens_total >= 6)
    await engine.abort(RequestId("r"))
    assert tokens(await run(engine, request(prompt=[7, 8, 9], max_tokens=4))) == expected
    assert (await first)[-1].finish_reason == "abort"


async def test_what_cannot_run_ends_with_one_error_output(make):
    engine = await make(model={"max_model_len": 100})
    (output,) = await run(engine, request(prompt=100))
    assert output.finish_reason == "error"
    assert "100 tokens" in output.error
    assert len(await run(engine, request(prompt=90))) == 5


async def test_stopping_ends_requests_and_is_safe_to_repeat(make):
    engine = await make(speedup=1.0)
    running = asyncio.create_task(run(engine, request(max_tokens=10_000)))
    await until(lambda: engine.load().num_running == 1)
    await engine.stop()
    await engine.stop()
    assert (await running)[-1].finish_reason == "abort"
    with pytest.raises(EngineError, match="not running"):
        await run(engine, request("late"))


async def test_prefill_and_decode_on_two_engines_equal_one(make):
    events = []
    prefill, decode, alone = await make(), await make(on_events=events.extend), await make()
    expected = tokens(await run(alone, request(prompt=320, max_tokens=20)))
    (first,) = await run(prefill, request(prompt=320, max_tokens=20, prefill_only=True))
    assert first.finish_reason == "length"
    assert first.kv.source == "w"
    outputs = await run(decode, request(prompt=320, max_tokens=20, kv=first.kv))
    assert tokens(outputs) == expected
    assert tokens([first]) == expected[:1]
    assert outputs[0].pulled_tokens == 320
    assert decode.load().pulled_tokens_total == 320
    assert events[0] == BlocksStored(first.kv.params["hashes"])


async def test_a_failed_transfer_is_recomputed_and_counted(make):
    engine = await make()
    (first,) = await run(engine, request(prompt=320, prefill_only=True))
    other = await make()
    failing = msgspec.structs.replace(first.kv, params=first.kv.params | {"fail": True})
    outputs = await run(other, request(prompt=320, max_tokens=3, kv=failing))
    assert len(tokens(outputs)) == 3
    assert outputs[0].pulled_tokens == 0
    assert other.load().pull_failures_total == 1


async def test_a_pull_takes_real_time(make):
    engine = await make()
    (first,) = await run(engine, request(prompt=3200, prefill_only=True))
    slow = await make(speedup=1.0, kv_bandwidth_gb_per_s=4.0)
    started = time.perf_counter()
    await run(slow, request(prompt=3200, max_tokens=1, kv=first.kv))
    assert time.perf_counter() - started >= 3200 * 131072 / 4e9


@pytest.mark.parametrize("kv_events", [True, False])
async def test_without_kv_events_it_says_so_and_sends_none(make, kv_events):
    sent = []
    engine = await make(sent.extend, kv_events=kv_events)
    assert engine.info.has_kv_events == kv_events
    first, again = [await run(engine, request(name, prompt=100)) for name in ("a", "b")]
    assert (first[0].cached_tokens, again[0].cached_tokens) == (0, 96), "it caches all the same"
    assert bool(sent) == kv_events


async def test_loading_takes_its_simulated_time(make):
    started = time.perf_counter()
    await make(speedup=1000.0, load_s=100.0)
    assert 0.1 <= time.perf_counter() - started < 100


async def test_an_engine_that_dies_says_so_to_its_readers(make):
    def fail(events):
        raise RuntimeError("boom")

    engine = await make(on_events=fail)
    with pytest.raises(EngineError, match="boom"):
        await run(engine, request(prompt=320))
    with pytest.raises(EngineError, match="not running"):
        await run(engine, request("later"))


async def test_the_context_is_the_models_own_unless_configured(make, tmp_path, tokenizer_dir):
    (tokenizer_dir / "config.json").write_text(json.dumps({"max_position_embeddings": 777}))
    assert (await make(model={"path": str(tokenizer_dir)})).info.max_model_len == 777
    assert (await make(model={"path": str(tokenizer_dir), "max_model_len": 55})).info.max_model_len == 55
    (tokenizer_dir / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"max_position_embeddings.*max_model_len"):
        await make(model={"path": str(tokenizer_dir)})


@pytest.fixture
def tokenizer_dir(tmp_path):
    from hpcserve.config.builtin_tokenizer import builtin_tokenizer_json

    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "tokenizer.json").write_text(builtin_tokenizer_json())
    return directory


async def until(condition):
    """Let the loop run until `condition()`, for at most 10 s."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"embeds": True}, "embeddings"),
        ({"parsing": ChatParsing(streams=True)}, "chat parsing"),
        ({"sampling": Sampling(max_tokens=5, structured=StructuredOutput(kind="json_object"))}, "structured output"),
        ({"sampling": Sampling(max_tokens=5, allowed_token_ids=(1,))}, "allowed_token_ids"),
        ({"sampling": Sampling(max_tokens=5, bad_words=("no",))}, "bad_words"),
    ],
)
async def test_what_it_would_have_to_ignore_is_refused_by_name(make, asked, named):
    engine = await make()
    assert engine.info.can == ("generate",)
    (refused,) = await run(engine, msgspec.structs.replace(request(), **asked))
    assert refused.finish_reason == "error"
    assert named in refused.error
