"""An engine does what it says it can, and refuses the rest with one output that says why."""

from __future__ import annotations

from itertools import count

import pytest

from hpcserve.types import ChatParsing, EngineRequest, RequestId, Sampling, StructuredOutput
from tests.contract.engine_subjects import Subject, text

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

_numbers = count()
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def make_request(sampling: Sampling | None = None, **extra: object) -> EngineRequest:
    return EngineRequest(
        request_id=RequestId(f"able-{next(_numbers)}"),
        token_ids=list(range(400, 440)),
        sampling=sampling or Sampling(max_tokens=8),
        **extra,
    )


async def test_structured_output_is_obeyed_or_refused(one: Subject) -> None:
    structured = StructuredOutput(kind="choice", value='["yes", "no"]')
    outputs = await one.run(make_request(Sampling(max_tokens=8, structured=structured)))
    if "structured_output" in one.info.can:
        assert text(outputs) in ("yes", "no")
    else:
        assert [output.finish_reason for output in outputs] == ["error"]
        assert "structured output" in (outputs[0].error or "")


async def test_tools_are_refused_without_a_parser(one: Subject) -> None:
    assert not {"tools", "reasoning"} & set(one.info.can)
    for parsing in (ChatParsing(streams=True), ChatParsing(streams=True, tools=(TOOL,), tool_choice="auto")):
        outputs = await one.run(make_request(parsing=parsing))
        assert [output.finish_reason for output in outputs] == ["error"]
        assert "pars" in (outputs[0].error or "")


async def test_embeddings_are_refused_by_an_engine_that_generates(one: Subject) -> None:
    assert "embed" not in one.info.can
    outputs = await one.run(make_request(embeds=True))
    assert [output.finish_reason for output in outputs] == ["error"]
    assert "embed" in (outputs[0].error or "")


async def test_only_allowed_tokens_come_or_the_request_is_refused(one: Subject) -> None:
    outputs = await one.run(make_request(Sampling(max_tokens=8, ignore_eos=True, allowed_token_ids=(70, 71))))
    if outputs[-1].finish_reason == "error":
        assert "allowed_token_ids" in (outputs[0].error or "")
    else:
        assert {token for output in outputs for token in output.token_ids} <= {70, 71}
        assert sum(len(output.token_ids) for output in outputs) == 8


async def test_bad_words_do_not_come_or_the_request_is_refused(one: Subject) -> None:
    greedy = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
    word = next(output.text for output in await one.run(make_request(greedy)) if output.text.strip().isascii())
    outputs = await one.run(
        make_request(Sampling(max_tokens=8, temperature=0.0, ignore_eos=True, bad_words=(word.strip(),)))
    )
    if outputs[-1].finish_reason == "error":
        assert "bad_words" in (outputs[0].error or "")
    else:
        assert all(output.text.strip() != word.strip() for output in outputs)
