"""Renders a model's chat template. Jinja is set up as transformers does it, which templates are written for.

See `transformers.utils.chat_template_utils`; it is not imported, because that costs a process seconds and hundreds of
megabytes. Tools and documents are not passed.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hpcserve.errors import BadRequest, ConfigError


class ChatTemplate:
    """One compiled template, and the special tokens that it may refer to by name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile `source`. Raises `ConfigError` when it is not a template."""
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
            # A plain dict: jinja2's ChainMap is slow to copy, which happens at every rendering.
            self._template.globals = dict(self._template.globals)
        except jinja2.TemplateSyntaxError as err:
            raise ConfigError(f"the chat template does not compile: line {err.lineno}: {err.message}") from err

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt. `extra` are variables of the model's own template. Raises `BadRequest` if it refuses."""
        variables = {"tools": None, "documents": None, **self._special_tokens, **(extra or {})}
        variables["messages"] = messages
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            return self._template.render(variables)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
            # What a template does with data that its author did not think of is the request's fault, not ours.
            message = f"the model's chat template refuses these messages: {err}"
            raise BadRequest(message, param="messages") from err


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """Accepts `{% generation %}…{% endgeneration %}`, which marks what a model is trained on, and renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 (the name templates know it by)
    return datetime.datetime.now().astimezone().strftime(format)
