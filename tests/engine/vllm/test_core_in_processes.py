"""vLLM as it comes, with its core in processes of its own: the way of the GPUs, on CPUs here."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from hpcserve.kv.hashing import hash_blocks
from hpcserve.types import EngineRequest, RequestId, Sampling, StructuredOutput
from tests.contract.engine_subjects import (
    Subject,
    make_config,
    make_context,
    make_subject_engine,
    start_subject,
    tokens,
)

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(240)]

PROMPT = list(range(300, 800))
GREEDY = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)


async def test_it_pulls_kv_tells_its_blocks_resumes_grammars_and_leaves_no_process(
    tiny_model: Path, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        subjects = []
        for name, in_process in (("prefill-0-1", True), ("decode-0-1", False)):
            config = make_config("vllm", tiny_model, vllm={"in_process": in_process})
            engine = make_subject_engine(config, make_context(name, tmp_path))
            stack.push_async_callback(engine.stop)
            subjects.append(await start_subject(engine))
        prefill, decode = subjects
        handle = (await prefill.run(_request("p", prefill_only=True)))[-1].kv
        outputs = await decode.run(_request("d", kv=handle))
        assert outputs[0].pulled_tokens >= len(PROMPT) - 1
        assert tokens(outputs) == tokens(await prefill.run(_request("a")))
        await decode.cache.wait_for(hash_blocks(PROMPT, 32))
        await _check_that_a_grammar_goes_on(prefill, decode)
        children = _children(decode.engine.pid)
        assert children
        began = asyncio.Event()
        reading = asyncio.create_task(_read_to_the_end(decode, began))
        await began.wait()
    assert await reading == "abort"
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


async def _check_that_a_grammar_goes_on(before: Subject, after: Subject) -> None:
    """The plugin that sees to it is loaded in the core's process, too."""
    sampling = Sampling(max_tokens=40, temperature=0.0, structured=StructuredOutput(kind="regex", value="(ab){6}!"))
    asked = EngineRequest(request_id=RequestId("g"), token_ids=PROMPT, sampling=sampling)
    generated = tokens(await before.run(asked))
    resumed = msgspec.structs.replace(asked, token_ids=PROMPT + generated[:3], num_resumed=3)
    assert generated[:3] + tokens(await after.run(resumed)) == generated


async def _read_to_the_end(subject: Subject, began: asyncio.Event) -> str | None:
    sampling = Sampling(max_tokens=3000, temperature=0.0, ignore_eos=True)
    endless = EngineRequest(request_id=RequestId("e"), token_ids=PROMPT, sampling=sampling)
    last = None
    async for output in subject.engine.generate(endless):
        last = output.finish_reason
        began.set()
    return last


def _request(name: str, **extra: object) -> EngineRequest:
    return EngineRequest(request_id=RequestId(name), token_ids=PROMPT, sampling=GREEDY, **extra)


def _children(pid: int) -> list[int]:
    """Return the descendants of a process."""
    direct = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return direct + [found for child in direct for found in _children(child)]
