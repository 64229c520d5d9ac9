"""Model families and their parsers: only names that vLLM has, and none where the model is not taught tools."""

from __future__ import annotations

import pytest

from hpcserve.engine.vllm.families import _FAMILIES, guess_tool_parser


@pytest.mark.parametrize(
    ("model_type", "template", "parser"),
    [
        ("qwen2", "within <tool_call></tool_call> XML tags", "hermes"),
        ("qwen3_moe", "<tool_call>\n<function=example>\n<parameter=a>", "qwen3_coder"),
        ("llama", 'Respond in the format {"name": function name, "parameters": dictionary of', "llama3_json"),
        ("llama", "{{ message['content'] }}", None),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>\n```json\n", "deepseek_v3"),  # noqa: RUF001
        ("deepseek_v3", "<｜tool▁calls▁begin｜>", "deepseek_v31"),  # noqa: RUF001
        ("mistral", "[TOOL_CALLS]", "mistral"),
        ("gpt_oss", "<|channel|>", "openai"),
        ("no-such-family", "<tool_call>", None),
    ],
)
def test_the_type_and_the_template_tell_the_parser(model_type: str, template: str, parser: str | None) -> None:
    assert guess_tool_parser(model_type, template) == parser


@pytest.mark.real
@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_vllm_has_every_parser_of_the_table() -> None:
    from vllm.tool_parsers import ToolParserManager

    assert {family.parser for family in _FAMILIES} <= set(ToolParserManager.list_registered())
