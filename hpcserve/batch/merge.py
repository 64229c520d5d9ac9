"""The results of an array's tasks put together. Every part has to be finished, and they must not overlap."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hpcserve.batch.paths import Paths
from hpcserve.batch.recovery import Recovered, recover
from hpcserve.errors import ConfigError, HpcserveError


@dataclass(frozen=True)
class Merged:
    """What became of the parts."""

    num_parts: int
    num_requests: int
    num_failed: int


def find_parts(output: Path) -> list[Path]:
    """Return `answers.0.jsonl` and so on, beside `answers.jsonl`. Raises `ConfigError` if one is missing."""
    stem = re.escape(output.name.removesuffix(".jsonl"))
    found = {
        int(match[1]): path
        for path in output.parent.iterdir()
        if (match := re.fullmatch(rf"{stem}\.(\d+)\.ledger", path.name))
    }
    missing = [number for number in range(max(found, default=0) + 1) if number not in found]
    if missing:
        part = output.with_name(f"{output.name.removesuffix('.jsonl')}.{missing[0]}.jsonl")
        raise ConfigError(f"there is no part {part}; name the parts if they are called otherwise")
    return [path.with_suffix(".jsonl") for _, path in sorted(found.items())]


def merge(parts: Sequence[Path], output: Path) -> Merged:
    """Write all answers to `output` and all failures beside it, in the order of the parts; the parts stay.

    Raises `ConfigError` for parts that are not finished, are of different inputs or have the same lines, and where the
    output is there already. `HpcserveError` where the disk takes no more; then nothing is left of the output.
    """
    into = Paths(output)
    there = [path for path in (into.output, into.errors, into.ledger) if path.exists()]
    if there:
        raise ConfigError(f"{there[0]} is there already; merge into another file, or remove it first")
    with ExitStack() as held:
        found = []
        for part in parts:
            if not Paths(part).ledger.is_file():
                raise ConfigError(f"{part} is no part of a batch: there is no {Paths(part).ledger}")
            held.enter_context(Paths(part).locked())
            found.append(_finished(part))
        _refuse_overlap(parts, found)
        for failed, target in ((True, into.errors), (False, into.output)):
            sizes = [
                (Paths(part).errors if failed else part, each.ends[failed])
                for part, each in zip(parts, found, strict=True)
            ]
            if not failed or any(size for _, size in sizes):
                _join(sizes, target)
    return Merged(len(found), sum(each.num_done for each in found), sum(each.num_failed for each in found))


def _finished(part: Path) -> Recovered:
    found = recover(Paths(part))
    if found is None or found.is_short or found.num_done < found.header.num_requests:
        so_far = f"{found.num_done:,} of {found.header.num_requests:,} requests are" if found else "nothing is"
        raise ConfigError(f"{part} is not finished: {so_far}; let its task go on first")
    return found


def _refuse_overlap(parts: Sequence[Path], found: Sequence[Recovered]) -> None:
    first = found[0]
    taken = bytearray(len(first.is_done))
    for part, each in zip(parts, found, strict=True):
        if each.header.num_lines != first.header.num_lines or each.header.settings != first.header.settings:
            raise ConfigError(f"{part} and {parts[0]} are not of the same input and options")
        lines = int.from_bytes(each.is_done, "little")
        if int.from_bytes(taken, "little") & lines:
            raise ConfigError(f"{part} has lines that another part has, too")
        taken = bytearray((int.from_bytes(taken, "little") | lines).to_bytes(len(taken), "little"))


def _join(parts: Sequence[tuple[Path, int]], target: Path) -> None:
    unfinished = target.with_name(f".{target.name}.part")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for path, size in parts:
                if size:
                    with path.open("rb") as source:
                        shutil.copyfileobj(source, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as err:
        unfinished.unlink(missing_ok=True)
        raise HpcserveError(f"cannot write {target}: {err.strerror}") from err
