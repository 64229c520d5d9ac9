from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hpcserve.errors import ConfigError, DeploymentError
from hpcserve.keys import KeyFile, Limits, digest
from hpcserve.state import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "lab")
    state.create()
    return state


@pytest.fixture
def keys(state: StateDir) -> KeyFile:
    return KeyFile(state)


def test_what_is_stored_is_private_and_does_not_give_the_key_away(keys: KeyFile) -> None:
    key = keys.add("alice", now=5.0)
    assert re.fullmatch(r"sk-[\w-]{43}", key)
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    text = keys.path.read_text()
    assert key.removeprefix("sk-") not in text
    assert json.loads(text) == [{"name": "alice", "sha256": digest(key).hex(), "created": 5.0, "limits": {}}]


def test_keys_come_back_as_they_were_added(keys: KeyFile) -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=2, max_concurrent=3)
    keys.add("alice", now=5.0, expires=9.0, priority=-2, limits=limits)
    keys.add("bob@lab.example", now=6.0)
    alice, bob = keys.read()
    assert (alice.name, alice.created, alice.expires, alice.priority, alice.limits) == ("alice", 5, 9, -2, limits)
    assert (bob.name, bob.expires, bob.priority, bob.limits) == ("bob@lab.example", None, 0, Limits())
    keys.revoke("alice")
    assert keys.read() == [bob]


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n", "a" * 65, "a/b", "ä", 'a"'])
def test_names_that_cannot_be_labels_are_refused(keys: KeyFile, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a key"):
        keys.add(name, now=0)
    assert keys.read() == ()


def test_a_name_is_given_once(keys: KeyFile) -> None:
    keys.add("alice", now=0)
    with pytest.raises(ConfigError, match=r"a key called 'alice' already.*hpcserve keys revoke alice"):
        keys.add("alice", now=0)
    assert len(keys.read()) == 1


def test_the_deployments_own_key_is_no_tenants(keys: KeyFile) -> None:
    with pytest.raises(ConfigError, match="'default' is the deployment's own key"):
        keys.add("default", now=0)
    with pytest.raises(ConfigError, match="'default' is the deployment's own key"):
        keys.revoke("default")


def test_an_unknown_name_gets_the_nearest(keys: KeyFile) -> None:
    keys.add("alice", now=0)
    with pytest.raises(ConfigError, match=r"no key called 'alcie'; did you mean 'alice'\?"):
        keys.revoke("alcie")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[{}]",
        '[{"name": "a", "sha256": "00", "created": 0}]',
        '[{"name": "a", "sha256": "%s", "created": 0, "models": []}]' % ("0" * 64),
        '[{"name": "a", "sha256": "%s", "created": 0, "regions": []}]' % ("0" * 64),
        '[{"name": "a\\n", "sha256": "%s", "created": 0}]' % ("0" * 64),
        '[{"name": "default", "sha256": "%s", "created": 0}]' % ("0" * 64),
        '[{"name": "a", "sha256": "%s", "created": 0, "limits": {"max_concurrent": 0}}]' % ("0" * 64),
    ],
)
def test_a_file_that_somebody_broke_is_named_and_left_alone(keys: KeyFile, content: str) -> None:
    keys.path.write_text(content)
    with pytest.raises(DeploymentError, match=r"keys\.json is damaged"):
        keys.read()
    with pytest.raises(DeploymentError, match=r"keys\.json is damaged"):
        keys.add("bob", now=0)
    assert keys.path.read_text() == content


def test_only_changes_are_read(keys: KeyFile) -> None:
    assert keys.read_if_changed(None) is None
    keys.add("alice", now=0)
    first = keys.read_if_changed(None)
    assert first is not None
    assert keys.read_if_changed(first.stamp) is None
    keys.revoke("alice")
    keys.add("bobby", now=0)  # as long as the first
    second = keys.read_if_changed(first.stamp)
    assert second is not None
    assert [each.name for each in second.records] == ["bobby"]
    keys.path.unlink()
    third = keys.read_if_changed(second.stamp)
    assert third is not None
    assert (third.stamp, third.records) == (None, ())


def test_keys_added_at_once_by_several_processes_are_all_there(state: StateDir, keys: KeyFile) -> None:
    script = (
        "import sys; from pathlib import Path; from hpcserve.keys import KeyFile; from hpcserve.state import StateDir\n"
        f"keys = KeyFile(StateDir(Path({str(state.path)!r})))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for number in range(10): keys.add(f'{sys.argv[1]}{number}', now=0)"
    )
    adders = [
        subprocess.Popen([sys.executable, "-c", script, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for who in ("a", "b")
    ]
    try:
        for adder in adders:
            assert adder.stdout is not None
            assert adder.stdout.readline() == "ready\n"
        for adder in adders:
            assert adder.stdin is not None
            adder.stdin.write("go\n")
            adder.stdin.flush()
        for adder in adders:
            adder.communicate(timeout=20)
    finally:
        for adder in adders:
            adder.kill()
            adder.communicate()
    assert {each.name for each in keys.read()} == {f"{who}{number}" for who in "ab" for number in range(10)}
    assert [path.name for path in state.path.iterdir() if path.name.startswith(".")] == []


def test_keys_can_be_changed_while_a_head_holds_the_deployment(state: StateDir, keys: KeyFile) -> None:
    with state.locked():
        keys.add("alice", now=0)
    assert len(keys.read()) == 1
