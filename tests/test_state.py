from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hpcserve.config import Config
from hpcserve.errors import DeploymentError
from hpcserve.records import HeadRecord, JobRecord, Proc
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    monkeypatch.setenv("HPCSERVE_STATE_DIR", str(tmp_path / "root"))
    state = StateDir.of("lab")
    state.create()
    return state


def test_everything_written_is_private_to_the_user(state: StateDir) -> None:
    state.write_config(Config())
    state.write_jobs([])
    state.write_failure("because")
    state.write_head(HeadRecord(proc=Proc.of(os.getpid()), scheduler="tls://a:1", address="tls://a:2"))
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.path.iterdir() if path.is_file()}
    assert {"config.json", "jobs.json", "head.json", "api-key", "failure.txt"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_the_key_is_made_once(state: StateDir) -> None:
    key = state.read_key()
    state.create()
    assert state.read_key() == key
    assert key.startswith("sk-")
    assert len(key) > 40


def test_records_come_back_as_they_were_written(state: StateDir) -> None:
    head = HeadRecord(proc=Proc.of(os.getpid()), scheduler="tls://a:1", address="tls://a:2", dashboard="http://x")
    job = JobRecord(worker=WorkerId("decode-0-ab"), pool="decode", role=Role.DECODE, job_id="17", cluster="slurm")
    config = Config.model_validate({"name": "lab", "engine": {"kind": "mock", "mock": {"speedup": float("inf")}}})
    state.write_head(head)
    state.write_jobs([job])
    state.write_config(config)
    assert (state.read_head(), state.read_jobs(), state.read_config()) == (head, [job], config)
    state.clear_head()
    assert state.read_head() is None


def test_a_deployment_that_was_never_started_is_said_to_be_missing(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "nothing")
    assert not state.exists()
    assert state.read_head() is None
    assert state.read_jobs() == []
    with pytest.raises(DeploymentError, match="no deployment called 'nothing'"):
        state.read_config()


def test_a_damaged_record_names_the_file(state: StateDir) -> None:
    (state.path / "jobs.json").write_text("{not json")
    with pytest.raises(DeploymentError, match=r"jobs\.json is damaged"):
        state.read_jobs()


def test_only_one_process_holds_a_deployment(state: StateDir) -> None:
    script = (
        "import sys; from pathlib import Path; from hpcserve.state import StateDir\n"
        f"with StateDir(Path({str(state.path)!r})).locked():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DeploymentError, match="another head already runs"), state.locked():
            pass
    finally:
        holder.communicate("")
    with state.locked():
        pass


def test_a_recycled_pid_is_not_taken_for_the_process_that_had_it() -> None:
    me = Proc.of(os.getpid())
    assert me.is_alive
    assert not Proc(pid=me.pid, host=me.host, start_time=me.start_time - 1).is_alive
    assert not Proc(pid=me.pid, host="another-host", start_time=me.start_time).is_alive


def test_a_process_that_ended_but_was_not_waited_for_is_dead() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        proc = Proc.of(child.pid)
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not proc.is_alive


def test_a_full_disk_at_the_start_is_said_in_words(state: StateDir) -> None:
    with pytest.raises(DeploymentError, match="No space left on device"), state.starting():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
