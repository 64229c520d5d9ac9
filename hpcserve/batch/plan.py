"""Before a run: whether there is something to go on with, whether the input is right, and the store to write to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from hpcserve.batch.check import check_input, take_fingerprint
from hpcserve.batch.ledger import Header
from hpcserve.batch.lines import Item, LineReader
from hpcserve.batch.order import Line, in_order, prefix_key, units_of
from hpcserve.batch.paths import Paths
from hpcserve.batch.recovery import Recovered, check_same_input, forget_failures, recover
from hpcserve.batch.source import Source
from hpcserve.batch.store import Store
from hpcserve.batch.tally import Tally
from hpcserve.batch.text_lengths import LengthCheck
from hpcserve.batch.unit import Unit
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """What to do and where to write it. Reads and writes files; asks nobody."""

    source: Source
    reader: LineReader
    paths: Paths
    is_fresh: bool = False  # whether to start over, over results that are there
    tries_failed: bool = False  # whether requests that failed before are tried again
    too_long: LengthCheck | None = None  # counts the tokens of texts; None: they are not counted
    is_ordered: bool = True  # whether requests that begin alike are run together; else as they come

    @contextmanager
    def opened(self, models: Mapping[str, int | None]) -> Iterator[Work]:
        """Hold the output, check the input or what is left of an earlier run, and make ready to write.

        Raises `ConfigError` for a wrong input, for one that is not that of the results so far, for results without a
        ledger, and while another run holds them.
        """
        with self.paths.locked():
            found = None if self.is_fresh else recover(self.paths)
            work = self._anew(models) if found is None else self._further(found)
            with work.store:
                yield work

    def _anew(self, models: Mapping[str, int | None]) -> Work:
        paths = self.paths
        if not self.is_fresh and (paths.output.exists() or paths.errors.exists()):
            there = paths.output if paths.output.exists() else paths.errors
            raise ConfigError(f"{there} is there already, without a ledger; --fresh overwrites it")
        checked = check_input(self.source, self.reader, models, self.too_long)
        fingerprint = checked.fingerprint
        header = Header(
            output=paths.output.name,
            settings=self.reader.settings,
            num_lines=fingerprint.num_lines,
            num_requests=checked.num_requests,
            num_bytes=fingerprint.num_bytes,
            digest=fingerprint.hexdigest(),
        )
        store = Store.start(paths, header, fingerprint)
        return Work(self, store, bytearray(fingerprint.num_lines + 1), Tally(checked.num_requests))

    def _further(self, found: Recovered) -> Work:
        check_same_input(found, self.reader.settings, take_fingerprint(self.source), self.source.noun)
        if self.tries_failed and found.num_failed:
            forget_failures(self.paths, found)
            found = recover(self.paths) or found
        tally = Tally(found.header.num_requests, num_before=found.num_done, num_failed=found.num_failed)
        warning = f"results are missing that {self.paths.ledger} has; they are done again" if found.is_short else None
        return Work(self, Store.go_on(self.paths, found), found.is_done, tally, warning)


@dataclass(frozen=True)
class Work:
    """A run that may begin."""

    plan: Plan
    store: Store
    is_done: bytearray  # by line number
    tally: Tally
    warning: str | None = None  # to be shown

    def units(self, size: int) -> Iterator[Unit]:
        """Yield the requests that are not finished in units of at most `size`, in the order of the plan."""
        lines = self._lines()
        if self.plan.is_ordered:
            keyed = ((line, prefix_key(item)) for line in lines if (item := self._read(line)) is not None)
            placed = in_order(keyed, self.plan.paths.output.parent)
        else:
            placed = ((0, line) for line in lines)
        for number, items in enumerate(units_of(placed, size, self._read)):
            yield Unit(number, tuple(items))

    def items(self) -> Iterator[Item]:
        """Yield the requests that are not finished, in the order of the input."""
        return (item for line in self._lines() if (item := self._read(line)) is not None)

    def _lines(self) -> Iterator[Line]:
        is_done = self.is_done
        for number, raw in enumerate(self.plan.source, 1):
            if number >= len(is_done) or not is_done[number]:
                yield Line(number, raw)

    def _read(self, line: Line) -> Item | None:
        item = self.plan.reader.read(line.number, line.raw)
        return item if isinstance(item, Item) else None
