"""Which of vLLM's parsers an engine uses, settled once when it starts. Parses nothing itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hpcserve.config import Config
from hpcserve.config.models import ModelConfig
from hpcserve.engine.vllm.families import guess_tool_parser
from hpcserve.errors import ConfigError, did_you_mean
from hpcserve.types import Ability

logger = logging.getLogger(__name__)

NONE = "none"
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Parsers:
    """The parsers of one model."""

    kind: Any  # type[vllm.parser.Parser]
    tokenizer: Any
    model_config: Any  # vllm.config.ModelConfig

    @property
    def abilities(self) -> tuple[Ability, ...]:
        """What they add to what the engine can do."""
        tools: tuple[Ability, ...] = ("tools",) if self.kind.tool_parser_cls else ()
        reasoning: tuple[Ability, ...] = ("reasoning",) if self.kind.reasoning_parser_cls else ()
        return tools + reasoning

    def make(self, chat: Any, template_kwargs: dict[str, Any]) -> Any:
        """Return a new `Parser` for one request (a `ChatCompletionRequest`); it holds that request's state."""
        return self.kind(
            self.tokenizer, chat.tools, model_config=self.model_config, chat_template_kwargs=template_kwargs
        )


def check_parser_names(model: ModelConfig) -> None:
    """Raise `ConfigError` for the name of a parser that vLLM does not have. Imports vLLM where one is named."""
    if model.tool_parser not in (AUTO, NONE):
        from vllm.tool_parsers import ToolParserManager

        _check("model.tool_parser", model.tool_parser, [AUTO, NONE, *ToolParserManager.list_registered()])
    if model.reasoning_parser != NONE:
        from vllm.reasoning import ReasoningParserManager

        _check("model.reasoning_parser", model.reasoning_parser, [NONE, *ReasoningParserManager.list_registered()])


def find_parsers(config: Config, model_config: Any, tokenizer: Any) -> Parsers | None:
    """Return the parsers for a loaded model; None where there is nothing to parse.

    Raises `ConfigError` where a parser that was named cannot work with the model's tokenizer.
    """
    model_type = getattr(model_config.hf_config, "model_type", "")
    reasoning = None if config.model.reasoning_parser == NONE else config.model.reasoning_parser
    if config.model.tool_parser != AUTO:
        tools = None if config.model.tool_parser == NONE else config.model.tool_parser
        return _compose(tools, reasoning, model_config, tokenizer)
    tools = guess_tool_parser(model_type, _template(config, tokenizer))
    try:
        return _compose(tools, reasoning, model_config, tokenizer)
    except ConfigError as err:
        if tools is None:
            raise
        logger.warning("no tool calls are parsed: %s", err.message)
        return _compose(None, reasoning, model_config, tokenizer)


def _compose(tools: str | None, reasoning: str | None, model_config: Any, tokenizer: Any) -> Parsers | None:
    if tools is None and reasoning is None:
        return None
    from vllm.parser import ParserManager

    try:
        kind = ParserManager.get_parser(
            tool_parser_name=tools,
            reasoning_parser_name=reasoning,
            enable_auto_tools=True,
            model_name=model_config.model,
            is_harmony=getattr(model_config.hf_config, "model_type", "") == "gpt_oss",
            tokenizer=tokenizer,
        )
    except TypeError as err:  # vLLM's word for a parser whose marks the tokenizer does not have
        asked = {"model.tool_parser": tools, "model.reasoning_parser": reasoning}
        named = " and ".join(f"{key} {name}" for key, name in asked.items() if name)
        raise ConfigError(
            f"{named} cannot work with this model's tokenizer: {str(err.__cause__ or err).rstrip('.')}; "
            "name the parser of the model's family, or none",
            param="model.tool_parser" if tools else "model.reasoning_parser",
        ) from err
    return None if kind is None else Parsers(kind=kind, tokenizer=tokenizer, model_config=model_config)


def _check(key: str, name: str, valid: Iterable[str]) -> None:
    valid = list(valid)
    if name not in valid:
        raise ConfigError(f"{key}: vLLM has no parser {name!r}{did_you_mean(name, valid)}", param=key)


def _template(config: Config, tokenizer: Any) -> str:
    if config.model.chat_template is not None:
        return config.model.chat_template.read_text(encoding="utf-8")
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # several, by name
        return "\n".join(template.values())
    return template or ""
