from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcserve.agent.scratch import remove_left, scratch_directory, scratch_root
from hpcserve.config import Config
from hpcserve.errors import ConfigError

WORKER = """
import sys, time
from hpcserve.agent.scratch import scratch_directory
from hpcserve.config import Config
with scratch_directory(Config.model_validate({"cluster": {"scratch": sys.argv[1]}}), "decode-0-a") as path:
    (path / "socket").touch()
    print(path, flush=True)
    time.sleep(600)
"""


def on(scratch: str) -> Config:
    return Config.model_validate({"cluster": {"scratch": scratch}})


@contextmanager
def worker(root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with subprocess.Popen([sys.executable, "-c", WORKER, str(root)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_the_scratch_directory_is_what_the_nodes_own_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_SSD", str(tmp_path))
    assert scratch_root(on("$LOCAL_SSD")) == str(tmp_path)
    assert scratch_root(Config()) is None


def test_a_scratch_directory_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_SSD", raising=False)
    with pytest.raises(ConfigError, match=r"cluster\.scratch = \$LOCAL_SSD/x is no directory on"):
        scratch_root(on("$LOCAL_SSD/x"))


def test_a_workers_directory_is_its_own_and_gone_after_it(tmp_path: Path) -> None:
    with scratch_directory(on(str(tmp_path)), "prefill-0-a") as path:
        assert path.parent == tmp_path
        assert path.name.startswith("hpcserve-prefill-0-a-")
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "socket").touch()
    assert not any(tmp_path.iterdir())


def test_the_next_worker_removes_what_a_killed_one_left_and_nothing_of_one_that_lives(tmp_path: Path) -> None:
    with worker(tmp_path) as (killed, left), worker(tmp_path) as (_, lives):
        killed.kill()
        killed.wait(10)
        assert (left / "socket").exists(), "nobody has had the time to remove it"
        with scratch_directory(on(str(tmp_path)), "decode-0-b") as path:
            assert set(tmp_path.iterdir()) == {lives, path}
        assert (lives / "socket").exists()


def test_what_is_not_surely_a_dead_worker_of_this_host_is_left_alone(tmp_path: Path) -> None:
    elsewhere, nobodys, linked = (tmp_path / f"hpcserve-{name}" for name in ("elsewhere", "nobodys", "linked"))
    victim = tmp_path / "victim"
    for path, host in ((elsewhere, "another-host"), (victim, socket.gethostname())):
        path.mkdir()
        (path / "owner").write_text(host)
    nobodys.mkdir()
    linked.symlink_to(victim)
    before = set(tmp_path.rglob("*"))
    remove_left(tmp_path)
    assert set(tmp_path.rglob("*")) == before
