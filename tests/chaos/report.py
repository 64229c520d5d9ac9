"""What a run found: as JSON for machines, as a page of text for people."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.batches import BatchOutcome
from tests.chaos.load import Outcome
from tests.chaos.plan import Plan

_MOST_TOLD = 25  # violations in the summary; all are in the JSON


@dataclass
class Happened:
    """One event of the plan, as it came."""

    at_s: float
    fault: str
    what: str
    undone: str = ""


@dataclass
class Report:
    """One run."""

    plan: Plan
    replay: str  # the command that does it again
    happened: list[Happened] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    batches: list[BatchOutcome] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)  # of workers, by cause
    head_back_s: list[float] = field(default_factory=list)
    memory_mb: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    took_s: float = 0.0
    logs: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it; of the requests the sums only, and those with a complaint."""
        said = asdict(self) | {"plan": self.plan.as_dict(), "load": self.load()}
        said["outcomes"] = [asdict(each) for each in self.outcomes if each.complaint]
        return said

    def load(self) -> dict[str, Any]:
        """Sums over all requests."""
        pauses = sorted(each.longest_pause_s for each in self.outcomes)
        return {
            "requests": len(self.outcomes),
            "tokens": sum(each.num_tokens for each in self.outcomes),
            "refused and asked again": sum(each.num_refused for each in self.outcomes),
            "broken with a frontend and asked again": sum(each.num_repeats for each in self.outcomes),
            "complaints": sum(bool(each.complaint) for each in self.outcomes),
            "longest pause within a stream, s": round(pauses[-1], 2) if pauses else None,
            "p99 of the longest pauses, s": round(pauses[int(0.99 * (len(pauses) - 1))], 2) if pauses else None,
            "longest time to an answer, s": round(max((each.took_s for each in self.outcomes), default=0.0), 2),
        }

    def write(self, directory: Path) -> None:
        """Write `report.json` and `summary.txt`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "report.json").write_text(json.dumps(self.as_dict(), indent=2))
        (directory / "summary.txt").write_text(self.text())

    def text(self) -> str:
        """The summary."""
        kinds = Counter(each.fault for each in self.happened if each.what)
        told = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
        lines = [
            f"chaos: seed {self.plan.seed}, {self.plan.duration_s:.0f} s of load, {self.took_s:.0f} s in all",
            f"  deployment: {self.plan.scenario}",
            f"  faults: {sum(kinds.values())}: {told}",
            "  load: " + ", ".join(f"{name}: {value}" for name, value in self.load().items()),
            "  workers ended: " + (", ".join(f"{count} {cause}" for cause, count in self.ends.items()) or "none"),
        ]
        if self.head_back_s:
            lines.append("  a new head served after: " + ", ".join(f"{each:.1f} s" for each in self.head_back_s))
        lines += [
            f"  batch {each.kind}: {each.num_lines} lines in {each.took_s:.0f} s, {each.num_starts} starts, "
            f"{len(each.complaints)} complaints"
            for each in self.batches
        ]
        lines += [
            f"  memory of {name}: {middle:.0f} MB, {minutes:.1f} minutes later {last:.0f} MB"
            for name, (middle, last, minutes) in self.memory_mb.items()
        ]
        if self.violations:
            lines += [f"{len(self.violations)} VIOLATIONS:", *(f"  - {each}" for each in self.violations[:_MOST_TOLD])]
            lines += [f"  replay: {self.replay}", f"  logs and report: {self.logs}"]
        else:
            lines.append("  every invariant held")
        return "\n".join(lines) + "\n"
