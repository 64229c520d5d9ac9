"""Which of vLLM's parsers reads the tool calls of a model, by the model's family. Knows names only.

A family is told by the `model_type` of config.json and by the markup that the model's chat template shows it: Qwen3 and
Qwen3-Coder have the same type, and write calls differently. Families whose models differ in ways that neither tells
(Llama 4, Gemma, Phi) are not here; their parser is named in the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Family:
    model_types: frozenset[str]
    markup: str  # in the chat template
    parser: str  # vLLM's name


def _family(model_types: str, markup: str, parser: str) -> _Family:
    return _Family(frozenset(model_types.split()), markup, parser)


_QWEN = "qwen2 qwen2_moe qwen2_vl qwen2_5_vl qwen3 qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe qwen3_5 qwen3_5_moe"
_FAMILIES = (  # the first that fits counts
    _family(_QWEN, "<function=", "qwen3_coder"),
    _family(_QWEN, "<tool_call>", "hermes"),
    _family("llama mllama", '"parameters": dictionary', "llama3_json"),
    _family("llama mistral", "<tool_call>", "hermes"),  # Hermes 2 Pro and 3
    _family("mistral mixtral mistral3 ministral3", "[TOOL_CALLS]", "mistral"),
    _family("deepseek_v3", "```json", "deepseek_v3"),
    _family("deepseek_v3 deepseek_v32", "<｜tool▁calls▁begin｜>", "deepseek_v31"),  # noqa: RUF001
    _family("gpt_oss", "<|channel|>", "openai"),
    _family("granite", "<|tool_call|>", "granite"),
    _family("granitemoehybrid", "<tool_call>", "granite4"),
    _family("glm4_moe", "<arg_key>", "glm45"),
    _family("kimi_k2", "<|tool_calls_section_begin|>", "kimi_k2"),
    _family("minimax_m2", "<minimax:tool_call>", "minimax_m2"),
    _family("seed_oss", "<seed:tool_call>", "seed_oss"),
    _family("jamba", "<tool_calls>", "jamba"),
    _family("ernie4_5_moe", "<tool_call>", "ernie45"),
    _family("hunyuan_v1_moe", "<tool_calls>", "hunyuan_a13b"),
    _family("olmo3", "<function_calls>", "olmo3"),
)


def guess_tool_parser(model_type: str, chat_template: str) -> str | None:
    """Return the name of vLLM's parser for tool calls; None where the family is not known, or is not taught tools."""
    for family in _FAMILIES:
        if model_type in family.model_types and family.markup in chat_template:
            return family.parser
    return None
