"""From one line of input to one request, or to what is wrong with the line. Pure; reads no file and sends nothing.

The format is that of OpenAI's Batch API (platform.openai.com/docs/guides/batch): `custom_id`, `method`, `url`, `body`.
Plain prompts become chats of one user message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from hpcserve.errors import HpcserveError, did_you_mean
from hpcserve.frontend.embeddings import parse_embeddings
from hpcserve.frontend.responses.validation import parse_responses
from hpcserve.frontend.validation import parse_chat, parse_completion

CHAT = "/v1/chat/completions"
_PARSERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    CHAT: parse_chat,
    "/v1/completions": parse_completion,
    "/v1/responses": parse_responses,
    "/v1/embeddings": parse_embeddings,
}
_FIELDS = {"custom_id": str, "method": str, "url": str, "body": dict}
_MAX_ID_CHARS = 512


@dataclass(frozen=True, slots=True)
class Item:
    """One request."""

    number: int  # of the line, from 1
    custom_id: str
    url: str  # path, such as /v1/chat/completions
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that is no request."""

    number: int
    message: str


class LineReader(Protocol):
    """What lines of an input mean."""

    @property
    def settings(self) -> dict[str, Any]:
        """What, besides the lines, the requests are made of; a run is resumed with the same ones only."""
        ...

    def read(self, number: int, raw: bytes) -> Item | Problem | None:
        """Return the request of a line as far as that can be told without its body's schema; None for a blank one."""
        ...


class OpenAILines:
    """Lines as OpenAI's Batch API wants them."""

    settings: dict[str, Any] = {"format": "openai"}  # noqa: RUF012  read only

    def read(self, number: int, raw: bytes) -> Item | Problem | None:
        """Return the request of a line."""
        if not raw.strip():
            return None
        try:
            line = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            return Problem(number, f"is not valid JSON: {err}")
        if not isinstance(line, dict):
            return Problem(number, "must be a JSON object")
        message = _wrong_fields(line)
        if message:
            return Problem(number, message)
        return Item(number, line["custom_id"], line["url"], line["body"])


class Prompts:
    """Lines that are prompts, or JSON texts of `[custom_id or null, prompt]`, each the user's message of a chat."""

    def __init__(
        self,
        model: str,
        sampling: dict[str, Any],
        *,
        system: str | None = None,
        noun: str = "line",
        is_text: bool = True,
    ) -> None:
        self._fields = {"model": model, **sampling}
        self._before = [] if system is None else [{"role": "system", "content": system}]
        self._noun = noun
        self._is_text = is_text

    @property
    def settings(self) -> dict[str, Any]:
        """Return all that is not in the lines."""
        return {"format": f"prompts, one a {self._noun}", "system": self._before, **self._fields}

    def read(self, number: int, raw: bytes) -> Item | Problem | None:
        """Return the request of a line."""
        custom_id: Any = None
        prompt: Any
        if not raw:
            return None
        if self._is_text:
            try:
                prompt = raw.decode()
            except UnicodeDecodeError as err:
                return Problem(number, f"is not UTF-8: {err.reason} at byte {err.start}")
            if not prompt.strip():
                return None
        else:
            custom_id, prompt = msgspec.json.decode(raw)
        if not isinstance(prompt, str) or not prompt:
            return Problem(number, f"has no prompt: {str(prompt)[:60]!r}")
        messages = [*self._before, {"role": "user", "content": prompt}]
        name = f"{self._noun}-{number}" if custom_id is None else str(custom_id)
        return Item(number, name, CHAT, {**self._fields, "messages": messages})


def wrong_body(item: Item) -> str | None:
    """Return what the endpoint would refuse about a request, or None: the checks are the endpoint's own."""
    if item.body.get("stream"):
        return "body.stream must be false: batches do not stream"
    try:
        _PARSERS[item.url](item.body)
    except HpcserveError as err:
        return f"body: {err.message}"
    return None


def _wrong_fields(line: dict[str, Any]) -> str | None:
    for name, kind in _FIELDS.items():
        if name not in line:
            return f"{name} is missing"
        if not isinstance(line[name], kind):
            return f"{name} must be {'an object' if kind is dict else 'a string'}"
    unknown = [name for name in line if name not in _FIELDS]
    if unknown:
        return f"unknown field {unknown[0][:60]!r}{did_you_mean(unknown[0][:60], _FIELDS)}"
    if not 0 < len(line["custom_id"]) <= _MAX_ID_CHARS:
        return f"custom_id must have 1 to {_MAX_ID_CHARS} characters"
    if line["method"] != "POST":
        return f"method must be POST, got {line['method'][:20]!r}"
    if line["url"] not in _PARSERS:
        return f"url {line['url'][:60]!r} is not of a batch{did_you_mean(line['url'][:60], _PARSERS)}"
    return None
