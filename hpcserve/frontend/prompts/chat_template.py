"""Renders a model's chat template. Jinja is set up as transformers does it, which templates are written for.

See `transformers.utils.chat_template_utils`; it is not imported, because that costs a process seconds and hundreds of
megabytes. A template sees what vLLM would give it.
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
from hpcserve.frontend.prompts.content_format import content_format_of

_CONTINUED = "<<the-message-to-be-continued-ends-here>> "  # a template that trims messages trims its space


class ChatTemplate:
    """One compiled template, and the special tokens that it may refer to by name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile `source`. Raises `ConfigError` when it is not a template."""
        self._special_tokens = dict(special_tokens)
        self._knows_developers = "'developer'" in source or '"developer"' in source
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            # A plain dict: jinja2's ChainMap is slow to copy, which happens at every rendering.
            self._template.globals = dict(self._template.globals)
            self.content_format = content_format_of(environment.parse(source))
        except jinja2.TemplateSyntaxError as err:
            raise ConfigError(f"the chat template does not compile: line {err.lineno}: {err.message}") from err

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, str]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt. `extra` are variables of the model's own template. Raises `BadRequest` if it refuses.

        With `continue_final_message` the prompt ends where the last message's text does.
        """
        if not self._knows_developers and any(each["role"] == "developer" for each in messages):
            messages = without_developers(messages)
        if continue_final_message:
            messages = [*messages[:-1], _with_end(messages[-1])]
        variables: dict[str, Any] = {"tools": tools, "documents": documents, **self._special_tokens, **(extra or {})}
        variables["messages"] = messages
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            text = self._template.render(variables)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as err:
            # What a template does with data that its author did not think of is the request's fault, not ours.
            message = f"the model's chat template refuses these messages: {err}"
            raise BadRequest(message, param="messages") from err
        return _until_end(text) if continue_final_message else text


def without_developers(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return `messages` for a template that knows no role developer: they become the system, which speaks first."""
    renamed = [{**each, "role": "system"} if each["role"] == "developer" else each for each in messages]
    system = [each for each in renamed if each["role"] == "system"]
    if len(system) == 1 and renamed[0] is system[0]:
        return renamed
    merged = {"role": "system", "content": "\n\n".join(text for each in system if (text := _text(each["content"])))}
    return [merged, *(each for each in renamed if each["role"] != "system")]


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _with_end(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + _CONTINUED}
    if not content:
        raise BadRequest("continue_final_message needs text in the last message", param="continue_final_message")
    last = {**content[-1], "text": content[-1]["text"] + _CONTINUED}
    return {**message, "content": [*content[:-1], last]}


def _until_end(text: str) -> str:
    end = text.rfind(_CONTINUED.strip())
    if end < 0:
        message = "the model's chat template does not show the last message, so that it cannot be continued"
        raise BadRequest(message, param="continue_final_message")
    return text[:end] if text.startswith(_CONTINUED, end) else text[:end].rstrip()


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
