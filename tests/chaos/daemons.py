"""A development cluster of a run's own, whose daemons can be killed, stopped and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcserve.records import Proc
from tests.fixtures_devcluster import ROOT, free_ports

_SCRIPT = ROOT / "slurm" / "devcluster"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class CannotBoot(Exception):
    """This machine has no Slurm, or we are not root."""


@dataclass(frozen=True)
class SlurmDaemons:
    """The daemons as `slurm/devcluster` recorded them."""

    directory: Path

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    def pid(self, name: str) -> int | None:
        """Pid of slurmctld or of a node's slurmd (`gpu3`); None if it is dead."""
        pid, ticks = self._records()[name]
        try:
            return pid if Proc.of(pid).start_time == ticks else None
        except ProcessLookupError:
            return None

    def signal(self, name: str, sign: signal.Signals) -> None:
        """Send a signal to one that lives."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, sign)

    def start(self, name: str) -> None:
        """Start one that is dead, as the script did, and record it where the script's `down` looks."""
        if self.pid(name) is not None:
            return
        program = "slurmctld" if name == "slurmctld" else "slurmd"
        arguments = ["-D", "-f", str(self.conf), *([] if program == "slurmctld" else ["-N", name])]
        with (self.directory / "log" / f"{name}.log").open("a") as log:
            child = subprocess.Popen(
                [shutil.which(program, path=_PATH) or program, *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=self.directory, env={"PATH": _PATH, "SLURM_CONF": str(self.conf)},
            )  # fmt: skip
        child.returncode = 0  # it is nobody's to wait for: it outlives this process, or the script ends it
        records = self._records() | {name: [child.pid, Proc.of(child.pid).start_time]}
        temporary = self.directory / "pids.json.new"
        temporary.write_text(json.dumps(records))
        temporary.replace(self.directory / "pids.json")

    def _records(self) -> dict[str, list[int]]:
        return dict(json.loads((self.directory / "pids.json").read_text()))


@contextmanager
def development_cluster(directory: Path) -> Iterator[SlurmDaemons]:
    """Boot one, and take it down whatever happens. Raises `CannotBoot` where that is not possible here."""
    boot = _devcluster("up", directory, f"--port={free_ports(9)}")
    try:
        if boot.returncode:
            raise CannotBoot(boot.stderr.strip())
        yield SlurmDaemons(directory)
    finally:
        _devcluster("down", directory)


def _devcluster(command: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_SCRIPT), command, "--dir", str(directory), *options],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
