"""What is refused, and what a client reads then."""

from __future__ import annotations

from typing import Any

import pytest

from hpcserve.engine.vllm.refusals import why_refused
from hpcserve.types import Ability, ChatParsing, EngineInfo, EngineRequest, RequestId, Sampling, StructuredOutput

TOOLS = ({"type": "function", "function": {"name": "add"}},)
REASONS: tuple[Ability, ...] = ("generate", "structured_output", "reasoning")


def refuse(
    can: tuple[Ability, ...] = ("generate", "structured_output"),
    *,
    resumes: bool = True,
    structured: StructuredOutput | None = None,
    token_ids: list[int] | None = None,
    **request: Any,
) -> str | None:
    info = EngineInfo(engine="vllm", model="tiny", block_size=32, num_kv_blocks=10, max_model_len=4, can=can)
    asked = EngineRequest(
        request_id=RequestId("r"),
        token_ids=[1, 2] if token_ids is None else token_ids,
        sampling=Sampling(max_tokens=1, structured=structured),
        **request,
    )
    return why_refused(asked, info, resumes_grammars=resumes)


@pytest.mark.parametrize(
    ("request_fields", "words"),
    [
        ({"token_ids": []}, "empty"),
        ({"token_ids": [1, 2, 3, 4]}, "4 tokens"),
        ({"token_ids": [1] * 5, "embeds": True, "can": ("embed",)}, "5 tokens"),
        ({"prefill_only": True}, "hand over KV"),
        ({"embeds": True}, "runner: pooling"),
        ({"can": ("embed",)}, "cannot generate"),
        ({"can": ("generate",), "structured": StructuredOutput(kind="json_object")}, "structured output"),
        ({"parsing": ChatParsing(streams=True)}, "model.reasoning_parser"),
        ({"parsing": ChatParsing(streams=True, tools=TOOLS, tool_choice="auto")}, "model.tool_parser"),
        ({"can": REASONS, "parsing": ChatParsing(streams=True, tools=TOOLS, tool_choice="auto")}, "model.tool_parser"),
        ({"structured": StructuredOutput(kind="json_object"), "num_resumed": 1, "resumes": False}, "resume"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(request_fields: dict[str, Any], words: str) -> None:
    assert words in (refuse(**request_fields) or "")


@pytest.mark.parametrize(
    "request_fields",
    [
        {},
        {"token_ids": [1, 2, 3, 4], "embeds": True, "can": ("embed",)},
        {"structured": StructuredOutput(kind="json_object"), "num_resumed": 1},
        {"can": REASONS, "parsing": ChatParsing(streams=True, tools=TOOLS)},
        {"num_resumed": 1, "resumes": False},
    ],
)
def test_what_can_run_is_not_refused(request_fields: dict[str, Any]) -> None:
    assert refuse(**request_fields) is None
