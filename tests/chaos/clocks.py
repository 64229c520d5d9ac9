"""A wall clock for the deployment's processes that can be made to jump, by a library that they are started with.

Only `time(2)` and its like are shifted, for all agents alike and for head, frontends and commands alike; monotonic
clocks and Slurm's daemons are not.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")


@dataclass(frozen=True)
class Clocks:
    """The file that all processes look at."""

    path: Path
    library: Path

    @property
    def env(self) -> dict[str, str]:
        """What the deployment is started with."""
        return {"LD_PRELOAD": str(self.library), "CHAOS_CLOCK": str(self.path)}

    def shift(self, *, agents_s: float = 0.0, others_s: float = 0.0) -> None:
        """Have clocks be that far off."""
        with self.path.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("qq", int(agents_s * 1e9), int(others_s * 1e9)))


def make_clocks(directory: Path) -> Clocks | None:
    """Build the library; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library, path = directory / "clock.so", directory / "clock"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, _SOURCE], check=True, capture_output=True)
    path.write_bytes(struct.pack("qq", 0, 0))
    return Clocks(path, library)
