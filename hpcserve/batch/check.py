"""The whole input, read once before anything is sent: everything that is wrong with it, by line number.

Streams: a million lines take 20 MB. `custom_id`s are compared by 64-bit hashes; lines whose hashes are the same are
read a second time and compared themselves.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xxhash

from hpcserve.batch.fingerprint import Fingerprint
from hpcserve.batch.lines import Item, LineReader, Problem, wrong_body
from hpcserve.batch.source import Source
from hpcserve.batch.text_lengths import LIMITS, LengthCheck
from hpcserve.errors import ConfigError

MAX_LISTED = 100


@dataclass
class _Findings:
    listed: list[Problem] = field(default_factory=list)
    num: int = 0

    def add(self, number: int, message: str) -> None:
        self.num += 1
        if len(self.listed) < MAX_LISTED:
            self.listed.append(Problem(number, message))


@dataclass(frozen=True)
class Checked:
    """An input in which nothing is wrong."""

    fingerprint: Fingerprint
    num_requests: int


def check_input(
    source: Source, reader: LineReader, models: Mapping[str, int | None], too_long: LengthCheck | None = None
) -> Checked:
    """Read all of the input. `models` are those that are served, with their context in tokens where it is known.

    Without `too_long` the tokens of texts are not counted.

    Raises `ConfigError` that lists the first hundred problems by line, and says how many there are.
    """
    findings = _Findings()
    fingerprint = Fingerprint()
    ids, numbers = array("Q"), array("Q")
    for number, raw in enumerate(source, 1):
        fingerprint.add(raw)
        item = reader.read(number, raw)
        if isinstance(item, Problem):
            findings.add(number, item.message)
        elif item is not None:
            ids.append(xxhash.xxh3_64_intdigest(item.custom_id.encode()))
            numbers.append(number)
            message = wrong_body(item) or not_served(item, models) or (too_long and too_long(item, len(raw)))
            if message:
                findings.add(number, message)
    _find_duplicates(source, reader, _candidates(ids, numbers), findings)
    if findings.num:
        raise ConfigError(_listing(findings, source.noun))
    if not ids:
        raise ConfigError("the input has no requests")
    return Checked(fingerprint, len(ids))


def take_fingerprint(source: Source) -> Fingerprint:
    """Read all of the input without looking what is in it."""
    fingerprint = Fingerprint()
    for raw in source:
        fingerprint.add(raw)
    return fingerprint


def not_served(item: Item, models: Mapping[str, int | None]) -> str | None:
    """Return why none of `models` can take a request as it is, or None: its model, or its length as far as known."""
    model = str(item.body["model"])
    if model not in models:
        return f"body: the model {model[:100]!r} is not served; served: {', '.join(models)}"
    context = models[model]
    if context is None:
        return None
    wanted = next((item.body[name] for name in LIMITS if isinstance(item.body.get(name), int)), 0)
    given = _known_tokens(item)
    if given + wanted > context - (0 if given else 1):
        prompt = f"the prompt's {given} tokens and " if given else "a prompt and "
        return f"body: too long: {prompt}{wanted} to generate are more than the context of {context} tokens"
    return None


def _known_tokens(item: Item) -> int:
    """Return the length of the longest prompt given as token ids; 0 for text, which `TextLengths` counts."""
    prompt = item.body.get("prompt", item.body.get("input"))
    if item.body.get("truncate_prompt_tokens") is not None or not isinstance(prompt, list) or not prompt:
        return 0
    if isinstance(prompt[0], int):
        return len(prompt)
    return max((len(each) for each in prompt if isinstance(each, list)), default=0)


def _candidates(ids: array[int], numbers: array[int]) -> set[int]:
    """Return the numbers of lines whose ids have the same hash as another's."""
    if not ids:
        return set()
    hashes = np.frombuffer(ids, dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    twice = np.zeros(len(hashes), dtype=bool)
    twice[order[1:][same]] = True
    twice[order[:-1][same]] = True
    return set(np.frombuffer(numbers, dtype=np.uint64)[twice].tolist())


def _find_duplicates(source: Source, reader: LineReader, candidates: set[int], findings: _Findings) -> None:
    if not candidates:
        return
    first: dict[str, int] = {}
    for number, raw in enumerate(source, 1):
        item = reader.read(number, raw) if number in candidates else None
        if not isinstance(item, Item):
            continue
        before = first.setdefault(item.custom_id, number)
        if before != number:
            findings.add(number, f"custom_id {item.custom_id[:60]!r} is that of {source.noun} {before}, too")


def _listing(findings: _Findings, noun: str) -> str:
    lines = [f"{noun} {each.number}: {each.message}" for each in sorted(findings.listed, key=lambda each: each.number)]
    more = findings.num - len(lines)
    lines += [f"and {more} more"] if more else []
    problems = "1 problem" if findings.num == 1 else f"{findings.num} problems"
    return "\n".join([*lines, f"the input has {problems}; nothing was sent"])
