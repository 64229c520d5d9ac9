"""All that is wrong with the input of a batch, as the API tells it: by line, with a code. Sends nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcserve.batch.check import not_served
from hpcserve.batch.lines import Item, OpenAILines, Problem, wrong_body
from hpcserve.batch.source import Source
from hpcserve.errors import ConfigError
from hpcserve.jobs import BatchError

MAX_LISTED = 100


@dataclass(frozen=True)
class Rules:
    """What the lines of a batch have to be."""

    endpoint: str
    max_lines: int
    served: Mapping[str, int | None]  # models, with their context in tokens where it is known
    allowed: Collection[str] | None = None  # models that the tenant may use; None: all


@dataclass
class Findings:
    """What was found."""

    num_requests: int = 0
    errors: list[BatchError] = field(default_factory=list)

    def add(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        """Take one more; after the first hundred they are not listed."""
        if len(self.errors) < MAX_LISTED:
            self.errors.append(BatchError(code=code, message=message, line=line, param=param))


class PrioritizedLines(OpenAILines):
    """Lines whose requests run at `priority` at the earliest, whatever they ask for: they are of a batch."""

    def __init__(self, priority: int) -> None:
        self._priority = priority

    def read(self, number: int, raw: bytes) -> Item | Problem | None:
        """Return the request of a line."""
        item = super().read(number, raw)
        if not isinstance(item, Item):
            return item
        asked: Any = item.body.get("priority")
        if asked is None or (type(asked) is int and asked < self._priority):
            item.body["priority"] = self._priority
        return item


def check_lines(source: Source, rules: Rules, priority: int) -> Findings:
    """Read all of an input, and return what is wrong with it. Memory grows with its `custom_id`s."""
    findings = Findings()
    seen: dict[str, int] = {}
    reader = PrioritizedLines(priority)
    try:
        for number, raw in enumerate(source, 1):
            item = reader.read(number, raw)
            if item is None:
                continue
            findings.num_requests += 1
            if findings.num_requests > rules.max_lines:
                break
            if isinstance(item, Problem):
                findings.add("invalid_line", f"the line {item.message}", number)
            else:
                _check(item, rules, seen, findings)
    except ConfigError as err:
        findings.add("unreadable_file", err.message)
    if findings.num_requests > rules.max_lines:
        findings.add("too_many_requests", f"a batch has at most {rules.max_lines} requests (batches.max_lines)")
    elif not findings.num_requests:
        findings.add("empty_file", "the file has no requests")
    return findings


def _check(item: Item, rules: Rules, seen: dict[str, int], findings: Findings) -> None:
    before = seen.setdefault(item.custom_id, item.number)
    if before != item.number:
        message = f"custom_id {item.custom_id[:60]!r} is that of line {before}, too"
        findings.add("duplicate_custom_id", message, item.number, "custom_id")
    if item.url != rules.endpoint:
        message = f"url is {item.url}, and the batch is for {rules.endpoint}"
        findings.add("mismatched_endpoint", message, item.number, "url")
        return
    message = wrong_body(item) or ""
    if message:
        findings.add("invalid_request", message, item.number, "body")
        return
    model = str(item.body["model"])
    if model not in rules.served or (rules.allowed is not None and model not in rules.allowed):
        message = f"the model {model[:100]!r} does not exist, or your key is not good for it"
        findings.add("model_not_found", message, item.number, "body.model")
    elif too_long := not_served(item, rules.served):
        findings.add("context_length_exceeded", too_long, item.number, "body")
