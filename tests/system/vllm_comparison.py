"""Holds hpcserve's answers against those of vLLM's own server. What may differ is in one table; all else must not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Status, and the objects of the body: one, or one an event."""

    status: int
    objects: list[Json]
    ends: bool = True  # a stream with [DONE]


def nothing(answer: Json) -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Difference:
    """Something in which the two may differ, and what is done to their answers so that the rest can be compared."""

    what: str  # as docs/api.md has it
    in_ours: Callable[[Json], None] = nothing
    in_theirs: Callable[[Json], None] = nothing


def _name_ids(answer: Json) -> None:
    answer |= {"id": answer["id"].partition("-")[0], "created": 0}
    if answer.get("system_fingerprint") is not None:
        answer["system_fingerprint"] = "a fingerprint"
    for call in _calls(answer):
        if call.get("id"):
            call["id"] = "an id"


def _drop_reasoning_content(answer: Json) -> None:
    for part in _parts(answer):
        assert part.pop("reasoning_content", None) == part.get("reasoning")


def _drop_cache_details(answer: Json) -> None:
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    for name in ("created_cache_tokens", "multimodal_tokens"):
        details.pop(name, None)


def _drop_running_details(answer: Json) -> None:
    if answer["object"].endswith(".chunk") and answer["choices"] and "usage" in answer:
        answer["usage"].pop("completion_tokens_details", None)


def _drop_empty_fields_of_deltas(answer: Json) -> None:
    for choice in answer["choices"]:
        if "delta" in choice and "role" not in choice["delta"]:
            choice["delta"] = {name: each for name, each in choice["delta"].items() if each not in (None, "")}


ACCEPTED = (
    Difference("ids, times and the value of `system_fingerprint`", _name_ids, _name_ids),
    Difference("`reasoning_content`, which repeats `reasoning`", in_ours=_drop_reasoning_content),
    Difference("`created_cache_tokens` and `multimodal_tokens`", in_theirs=_drop_cache_details),
    Difference("`completion_tokens_details` in the usage so far", _drop_running_details, _drop_running_details),
    Difference("fields of deltas that are empty", _drop_empty_fields_of_deltas, _drop_empty_fields_of_deltas),
)
"""What may differ in answers with status 200; the bodies of errors are each server's own."""

REFUSED, SERVED = (400, 200), (200, 400)
OTHER_STATUS: dict[str, tuple[int, int]] = {
    "completions: refused: prompt and output over the context": REFUSED,
    "chat/completions: refused: greedy choices": SERVED,
    "chat/completions: refused: unknown field": REFUSED,
    "completions: refused: echo with logprobs": REFUSED,
    "chat/completions: refused: logprobs of the prompt": REFUSED,
    "chat/completions: refused: removed fields": REFUSED,
}
"""Requests, by the name of their case, that the two answer with different statuses: ours, and vLLM's."""


@dataclass
class Comparison:
    """Counts how far answers had to be taken apart until they were alike."""

    num_alike: int = 0
    num_joined: int = 0  # alike only after the pieces of their texts were joined
    differences: list[str] = field(default_factory=list)

    def add(self, name: str, ours: Answer, theirs: Answer) -> None:
        """Compare two answers to one request."""
        statuses = (ours.status, theirs.status)
        if statuses != OTHER_STATUS.get(name, (theirs.status, theirs.status)):
            self.differences.append(f"{name}: status {statuses}: {_text(ours.objects)} / {_text(theirs.objects)}")
            return
        self.num_alike += 1
        if statuses != (200, 200):
            return
        mine = _by_choice(_comparable(ours.objects, [each.in_ours for each in ACCEPTED]))
        other = _by_choice(_comparable(theirs.objects, [each.in_theirs for each in ACCEPTED]))
        if ours.ends and _text(mine) == _text(other):
            return
        self.num_joined += 1
        mine, other = _joined(mine), _joined(other)
        if not ours.ends or _text(mine) != _text(other):
            self.differences.append(f"{name}:\n  {_text(mine)}\n  {_text(other)}")


def _comparable(objects: list[Json], edits: list[Callable[[Json], None]]) -> list[Json]:
    comparable = []
    for each in objects:
        answer = _rounded(copy.deepcopy(each))
        for edit in edits:
            edit(answer)
        if not _says_nothing(answer):
            comparable.append(answer)
    return comparable


def _says_nothing(answer: Json) -> bool:
    """Tell a token that is no text yet: an event with an empty delta, which vLLM's server leaves out or not."""
    choices = answer["choices"]
    if len(choices) != 1 or choices[0].get("delta") != {}:
        return False
    return all(choices[0].get(name) is None for name in ("finish_reason", "logprobs", "token_ids"))


def _by_choice(objects: list[Json]) -> list[Json]:
    """Sort the events of a stream: choices are independent of each other, but not what precedes and follows them."""
    return sorted(objects, key=lambda each: each["choices"][0]["index"] if len(each["choices"]) == 1 else 1 << 30)


def _joined(objects: list[Json]) -> list[Json]:
    """Join events that differ in nothing but what they add: how many tokens come at once is a matter of time."""
    joined: list[Json] = []
    for each in objects:
        if joined and _continues(joined[-1], each):
            last = joined.pop()
            choice, piece = last["choices"][0], each["choices"][0]
            merged = {**choice, **{name: _sum(choice.get(name), piece[name]) for name in piece if name != "index"}}
            each = {**each, "choices": [{"index": choice["index"], **{n: merged[n] for n in piece if n != "index"}}]}
        joined.append(each)
    return joined


def _continues(last: Json, each: Json) -> bool:
    if len(last["choices"]) != 1 or len(each["choices"]) != 1:
        return False
    first, second = last["choices"][0], each["choices"][0]
    return first["index"] == second["index"] and "role" not in first.get("delta", {}) and not first["finish_reason"]


def _sum(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, dict):
        return {name: _sum(first.get(name), second.get(name)) for name in {**first, **second}}
    if isinstance(first, list) and first and isinstance(first[0], dict) and "index" in first[0]:
        return _joined_calls([*first, *second])
    return first + second if isinstance(first, str | list) else second


def _joined_calls(pieces: list[Json]) -> list[Json]:
    calls: list[Json] = []
    for piece in pieces:
        if calls and calls[-1]["index"] == piece["index"]:
            calls[-1] = {**calls[-1], "function": _sum(calls[-1]["function"], piece["function"])}
        else:
            calls.append(piece)
    return calls


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def _parts(answer: Json) -> Iterator[Json]:
    for choice in answer["choices"]:
        if part := choice.get("message") or choice.get("delta"):
            yield part


def _calls(answer: Json) -> Iterator[Json]:
    for part in _parts(answer):
        yield from part.get("tool_calls", ())


def _text(objects: list[Json]) -> str:
    return json.dumps(objects, ensure_ascii=False)[:3000]
