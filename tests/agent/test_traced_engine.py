"""What an engine's requests spent their time on, with mock engines that take a tenth of real time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpcserve.agent.traced_engine import TracedEngine
from hpcserve.config import Config
from hpcserve.engine.mock.engine import MockEngine
from hpcserve.engine.protocol import EngineContext
from hpcserve.types import EngineOutput, EngineRequest, KvHandle, RequestId, Role, Sampling, WorkerId

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass(frozen=True)
class Span:
    name: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    error: str | None


@dataclass
class Notebook:
    """A tracer that sends nothing."""

    spans: list[Span] = field(default_factory=list)

    def record(
        self, name: str, traceparent: str, began_ns: int, attributes: dict[str, Any], *, ended_ns: int,
        error: str | None,
    ) -> None:  # fmt: skip
        assert traceparent == TRACEPARENT
        self.spans.append(Span(name, began_ns, ended_ns, attributes, error))

    def names(self) -> list[str]:
        return [span.name for span in self.spans]


MakeEngine = Callable[[str], Awaitable[tuple[TracedEngine, Notebook]]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakeEngine]:
    config = Config.model_validate({"engine": {"kind": "mock", "mock": {"speedup": 10}}})
    engines: list[TracedEngine] = []

    async def make(worker: str) -> tuple[TracedEngine, Notebook]:
        context = EngineContext(
            worker=WorkerId(worker), role=Role.BOTH, host="127.0.0.1", moves_kv=True, scratch=tmp_path
        )
        notebook = Notebook()
        engine = TracedEngine(MockEngine(config, context), notebook)  # type: ignore[arg-type]
        await engine.start(lambda _: None)
        engines.append(engine)
        return engine, notebook

    yield make
    for engine in engines:
        await engine.stop()


def request(num_prompt: int = 1000, **fields: Any) -> EngineRequest:
    return EngineRequest(
        request_id=RequestId("r-0"),
        token_ids=[1] * num_prompt,
        sampling=Sampling(max_tokens=20, ignore_eos=True),
        **{"traceparent": TRACEPARENT, **fields},
    )


async def run(engine: TracedEngine, asked: EngineRequest) -> list[EngineOutput]:
    return [output async for output in engine.generate(asked)]


async def handle_from(engine: TracedEngine) -> KvHandle:
    handle = (await run(engine, request(prefill_only=True)))[-1].kv
    assert handle is not None
    return handle


async def test_an_engine_that_does_both_prefills_until_the_first_token_and_then_decodes(make):
    engine, notebook = await make("both-0-a")
    await run(engine, request())
    prefill, decode = notebook.spans
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert prefill.began_ns < prefill.ended_ns == decode.began_ns < decode.ended_ns
    assert decode.attributes == {
        "hpcserve.request_id": "r-0",
        "hpcserve.prompt_tokens": 1000,
        "hpcserve.cached_tokens": 0,
        "hpcserve.finish_reason": "length",
        "hpcserve.generated_tokens": 20,
    }
    assert prefill.error is None
    assert decode.error is None


async def test_a_prefill_for_another_worker_is_one_span(make):
    engine, notebook = await make("prefill-0-a")
    await handle_from(engine)
    assert notebook.names() == ["prefill"]
    assert notebook.spans[0].ended_ns - notebook.spans[0].began_ns > 1_000_000


async def test_a_prompt_from_another_worker_is_transferred_and_then_decoded(make):
    source, _ = await make("prefill-0-a")
    engine, notebook = await make("decode-0-a")
    await run(engine, request(kv=await handle_from(source)))
    transfer, decode = notebook.spans
    assert notebook.names() == ["kv_transfer", "decode"]
    assert transfer.began_ns < transfer.ended_ns == decode.began_ns < decode.ended_ns
    assert transfer.attributes["hpcserve.source_worker"] == "prefill-0-a"
    assert transfer.attributes["hpcserve.pulled_tokens"] == 1000
    seconds = (transfer.ended_ns - transfer.began_ns) / 1e9
    assert 0 < seconds < 0.05, "1,000 tokens at 50 GB/s and 10 times the speed, not the whole wait"


async def test_the_rest_of_a_prompt_is_prefilled_after_its_prefix_has_come(make):
    source, _ = await make("prefill-0-a")
    engine, notebook = await make("both-0-a")
    await run(engine, request(1500, kv=await handle_from(source)))
    assert notebook.names() == ["kv_transfer", "prefill", "decode"]
    ends = [span.ended_ns for span in notebook.spans]
    assert [span.began_ns for span in notebook.spans][1:] == ends[:-1]


async def test_a_transfer_that_fails_says_so_and_the_prompt_is_prefilled(make):
    source, _ = await make("prefill-0-a")
    engine, notebook = await make("decode-0-a")
    broken = msgspec.structs.replace(await handle_from(source), params={"fail": True})
    await run(engine, request(kv=broken))
    assert notebook.names() == ["kv_transfer", "prefill", "decode"]
    assert "nothing was pulled" in notebook.spans[0].error
    assert notebook.spans[0].began_ns == notebook.spans[0].ended_ns


async def test_a_request_that_is_given_up_leaves_its_spans(make):
    engine, notebook = await make("both-0-a")
    async with aclosing(engine.generate(request())) as outputs:
        async for _ in outputs:
            break
    assert notebook.names() == ["prefill", "decode"]
    assert [span.error is None for span in notebook.spans] == [True, False]


async def test_a_request_that_never_got_a_token_failed_while_prefilling(make):
    engine, notebook = await make("both-0-a")
    running = asyncio.create_task(run(engine, request(30_000)))
    async with asyncio.timeout(5):
        while not engine.load().num_running + engine.load().num_waiting:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert notebook.names() == ["prefill"]
    assert notebook.spans[0].error is not None


async def test_a_refused_request_says_why(make):
    engine, notebook = await make("both-0-a")
    await run(engine, request(0))
    assert [(span.name, "prompt is empty" in span.error) for span in notebook.spans] == [("prefill", True)]


async def test_other_requests_are_not_looked_at(make):
    engine, notebook = await make("both-0-a")
    outputs = [output async for output in engine.generate(request(traceparent=None))]
    await engine.run(request(traceparent=None), outputs.append)
    assert len(outputs) == 40
    assert notebook.spans == []
