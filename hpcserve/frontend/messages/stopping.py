"""Why a message ended, in Anthropic's words."""

from __future__ import annotations

from typing import Any

import msgspec

from hpcserve.frontend.messages.replies import Ending
from hpcserve.types import FinishReason


def ending_of(
    finish_reason: FinishReason | None, stop_reason: int | str | None, *, calls_tools: bool, calls_are_whole: bool
) -> Ending:
    """Return the stop reason, and the stop sequence that was met.

    As with vLLM, a stop sequence goes before a tool call that it has cut short, and after one that is whole.
    """
    if finish_reason == "length":
        return Ending("max_tokens", None)
    if calls_tools and calls_are_whole:
        return Ending("tool_use", None)
    if isinstance(stop_reason, str):  # a number is a token that ends every answer
        return Ending("stop_sequence", stop_reason)
    return Ending("tool_use" if calls_tools else "end_turn", None)


def is_object(arguments: str) -> bool:
    """Return whether the arguments of a tool call are a whole JSON object."""
    return isinstance(_decoded(arguments), dict)


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
