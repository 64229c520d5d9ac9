"""How engines end. Each test starts its own, so the suite beside this one can share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hpcserve.types import EngineRequest, RequestId, Sampling
from tests.contract.engine_subjects import make_config, make_context, make_subject_engine, start_subject

pytestmark = pytest.mark.timeout(120)


async def test_stopping_ends_running_requests_as_aborted_and_may_be_repeated(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue("tiny_model") if kind == "vllm" else None
    subject = await start_subject(make_subject_engine(make_config(kind, model), make_context("a-0-1", tmp_path)))
    began = asyncio.Event()

    async def read() -> str | None:
        sampling = Sampling(max_tokens=3000, temperature=0.0, ignore_eos=True)
        running = EngineRequest(request_id=RequestId("r"), token_ids=list(range(300, 400)), sampling=sampling)
        async for output in subject.engine.generate(running):
            began.set()
            last = output.finish_reason
        return last

    reading = asyncio.create_task(read())
    await began.wait()
    before = await subject.load()
    await subject.engine.stop()
    assert subject.engine.load().prompt_tokens_total == before.prompt_tokens_total == 100
    assert subject.engine.load().generated_tokens_total >= before.generated_tokens_total >= 1
    await subject.engine.stop()
    assert await reading == "abort"
    assert getattr(subject.engine, "returncode", 0) == 0  # NIXL crashes a process that leaves its agent behind
    assert list(tmp_path.iterdir()) == []


async def test_stopping_before_starting_does_nothing(kind: str, tmp_path: Path) -> None:
    engine = make_subject_engine(make_config(kind, tmp_path), make_context("a-0-1", tmp_path))
    await engine.stop()
