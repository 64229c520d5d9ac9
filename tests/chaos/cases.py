"""The requests of the load, and the answer that each must have, to the letter.

What the mock engine says follows from its prompt alone, so it is computed here beforehand, by the engine's own table
but without an engine. What a real model says is asked of a deployment that nothing happens to (`undisturbed`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hpcserve.config.builtin_tokenizer import BUILTIN_CHAT_TEMPLATE, SPECIAL_TOKENS
from hpcserve.engine.mock.tokens import load_table

_TEMPLATE_TOKENS = 4  # <|bos|><|user|> … <|end|><|assistant|>
_ASSISTANT = 256 + SPECIAL_TOKENS.index("<|assistant|>")
assert BUILTIN_CHAT_TEMPLATE.count("<|bos|>") == 1


@dataclass(frozen=True)
class Expected:
    """The whole answer, as far as it is decided by the request."""

    texts: tuple[str, ...]  # of the choices
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Case:
    """One request that may be sent again and again."""

    name: str
    path: str
    body: dict[str, Any] = field(hash=False)
    expected: Expected | None = None

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.get("stream"))


def draw_cases(seed: int, model: str, *, is_mock: bool, count: int = 32, longest: int = 700) -> list[Case]:
    """Return requests of all forms. Those to the mock have their expected answers already."""
    rng = random.Random(f"cases of {seed}")
    forms = (_chat, _chat, _whole_chat, _pair, _stopped, _long_chat)
    cases = []
    for number in range(count):
        form = forms[number % len(forms)]
        # no two of one length: what the mock says depends on the last token and its position
        prompt = _prompt(rng, 16 * number + rng.choice((20, 40, 600, 1800)) + number)
        cases.append(form(number, prompt, rng, longest))
    named = [replace(case, body={"model": model, "temperature": 0, "ignore_eos": True} | case.body) for case in cases]
    return [replace(case, expected=_mock_answer(case)) for case in named] if is_mock else named


def with_stop(case: Case, text: str) -> Case:
    """Return a case of the form `stopped` with a stop string that its text holds, once the text is known."""
    middle = len(text) // 2
    stop = text[middle : middle + 5]
    return replace(case, body=case.body | {"stop": [stop]})


def mock_text(prompt_tokens: int, last_token: int, count: int) -> str:
    """Return what the mock engine generates with the built-in tokenizer, whose tokens are characters."""
    table, written, previous = load_table(None), [], last_token
    for position in range(prompt_tokens, prompt_tokens + count):
        index = table.pick(previous, position)
        previous = table.ids[index]
        written.append(table.texts[index])
    return "".join(written)


def _mock_answer(case: Case) -> Expected:
    body = case.body
    if "messages" in body:
        prompt_tokens = len(body["messages"][0]["content"].encode()) + _TEMPLATE_TOKENS
        last_token = _ASSISTANT
    else:
        prompt_tokens, last_token = len(body["prompt"].encode()), body["prompt"].encode()[-1]
    text = mock_text(prompt_tokens, last_token, body["max_tokens"])
    num_choices = body.get("n", 1)
    if "stop" not in body:
        return Expected((text,) * num_choices, "length", prompt_tokens, num_choices * body["max_tokens"])
    stop = text[len(text) // 2 :][:5]
    end = text.index(stop)
    body["stop"] = [stop]
    return Expected((text[:end],) * num_choices, "stop", prompt_tokens, num_choices * (end + len(stop)))


def _prompt(rng: random.Random, length: int) -> str:
    words = ("tell", "me", "about", "queues", "nodes", "that", "leave", "and", "streams", "that", "stay")
    text = ""
    while len(text) < length:
        text += rng.choice(words) + " "
    return text[:length]


def _chat(number: int, prompt: str, rng: random.Random, longest: int) -> Case:
    return Case(f"chat-{number}", "chat/completions", _chat_body(prompt, rng.randint(20, longest // 2)) | _STREAM)


def _long_chat(number: int, prompt: str, rng: random.Random, longest: int) -> Case:
    body = _chat_body(prompt, rng.randint(longest * 2 // 3, longest)) | _STREAM
    return Case(f"long-{number}", "chat/completions", body)


def _whole_chat(number: int, prompt: str, rng: random.Random, longest: int) -> Case:
    return Case(f"whole-{number}", "chat/completions", _chat_body(prompt, rng.randint(20, longest // 2)))


def _pair(number: int, prompt: str, rng: random.Random, longest: int) -> Case:
    body = {"prompt": prompt, "max_tokens": rng.randint(20, longest // 3), "n": 2}
    return Case(f"pair-{number}", "completions", body | _STREAM)


def _stopped(number: int, prompt: str, rng: random.Random, longest: int) -> Case:
    body = _chat_body(prompt, rng.randint(longest // 4, longest // 2)) | _STREAM
    return Case(f"stopped-{number}", "chat/completions", body | {"stop": []})


def _chat_body(prompt: str, max_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens}


_STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def differences(case: Case, texts: Sequence[str], finish_reasons: Sequence[str | None], usage: dict[str, Any]) -> str:
    """Return in what an answer is not the expected one; empty where it is."""
    expected = case.expected
    assert expected is not None
    wrong = []
    for index, (text, wanted) in enumerate(zip(texts, expected.texts, strict=False)):
        if text != wanted:
            same = next((at for at, pair in enumerate(zip(text, wanted, strict=False)) if pair[0] != pair[1]), None)
            at = min(len(text), len(wanted)) if same is None else same
            wrong.append(
                f"choice {index} differs from character {at} of {len(wanted)} on ({len(text)} came): "
                f"{text[at : at + 12]!r} for {wanted[at : at + 12]!r}"
            )
    if len(texts) != len(expected.texts):
        wrong.append(f"{len(texts)} choices for {len(expected.texts)}")
    if set(finish_reasons) != {expected.finish_reason}:
        wrong.append(f"ended with {finish_reasons} for {expected.finish_reason}")
    told = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if told != (expected.prompt_tokens, expected.completion_tokens):
        wrong.append(f"usage {told} for {(expected.prompt_tokens, expected.completion_tokens)}")
    return "; ".join(wrong)
