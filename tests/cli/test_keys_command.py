"""`hpcserve keys` and what it takes for a time."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from hpcserve.cli.expiry import parse_expiry
from hpcserve.config import Config
from hpcserve.errors import ConfigError
from hpcserve.keys import KeyFile, digest
from hpcserve.state import StateDir


@pytest.fixture
def state(home: Path) -> StateDir:
    return deployment("default", auth="on")


def deployment(name: str, **security: str) -> StateDir:
    state = StateDir.of(name)
    state.create()
    config = {"name": name, "engine": {"kind": "mock"}, "cluster": {"kind": "local"}, "security": security}
    state.write_config(Config.model_validate(config))
    return state


def test_a_key_is_printed_alone_and_once(run, state: StateDir) -> None:
    result = run("keys", "add", "alice")
    assert result.exit_code == 0
    key = result.stdout.strip()
    (record,) = KeyFile(state).read()
    assert record.sha256 == digest(key).hex()
    assert abs(record.created - time.time()) < 60
    assert result.stderr == "the key of 'alice', not to be shown again; it is valid within a second\n"
    assert key not in run("keys", "list").stdout + run("keys", "list", "--json").stdout


def test_limits_priority_and_expiry_are_kept(run, state: StateDir) -> None:
    arguments = ("--requests-per-minute", "60", "--tokens-per-minute", "9000", "--max-concurrent", "4")
    assert run("keys", "add", "alice", *arguments, "--priority", "-1", "--expires", "30d").exit_code == 0
    assert run("keys", "add", "bob").exit_code == 0
    alice, bob = json.loads(run("keys", "list", "--json").stdout)
    assert alice.pop("expires") == pytest.approx(alice.pop("created") + 30 * 86400)
    assert alice == {
        "name": "alice",
        "expired": False,
        "priority": -1,
        "requests_per_minute": 60,
        "tokens_per_minute": 9000,
        "max_concurrent": 4,
        "models": None,
    }
    assert (bob["expires"], bob["requests_per_minute"]) == (None, None)
    head, first, second = run("keys", "list").stdout.splitlines()
    assert head.split()[:4] == ["NAME", "CREATED", "EXPIRES", "PRIORITY"]
    assert head.split()[4:] == ["REQUESTS/MIN", "TOKENS/MIN", "CONCURRENT", "MODELS"]
    assert first.split()[-5:] == ["-1", "60", "9000", "4", "all"]
    assert second.split()[-6:] == ["never", "0", "-", "-", "-", "all"]


def test_a_key_may_be_good_for_some_models_only(run, state: StateDir) -> None:
    result = run("keys", "add", "alice", "--model", "mock", "--model", "mock", "--model", "big/one")
    assert result.exit_code == 0
    assert "note" not in result.stderr
    assert KeyFile(state).read()[0].models == ("mock", "big/one")
    assert json.loads(run("keys", "list", "--json").stdout)[0]["models"] == ["mock", "big/one"]
    assert run("keys", "list").stdout.splitlines()[1].endswith("mock, big/one")


def test_a_model_that_is_not_served_is_noted(run, state: StateDir) -> None:
    result = run("keys", "add", "alice", "--model", "mokc")
    assert result.exit_code == 0
    assert "note: default serves 'mock', which this key is not good for" in result.stderr


def test_an_expired_key_is_listed_as_such(run, state: StateDir) -> None:
    KeyFile(state).add("alice", now=0.0, expires=1.0)
    assert "(expired)" in run("keys", "list").stdout
    assert json.loads(run("keys", "list", "--json").stdout)[0]["expired"] is True


def test_revoke_removes_one(run, state: StateDir) -> None:
    run("keys", "add", "alice")
    run("keys", "add", "bob")
    assert run("keys", "revoke", "alice").exit_code == 0
    assert [each.name for each in KeyFile(state).read()] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "alice"), "there is a key called 'alice' already"),
        (("add", "default"), "'default' is the deployment's own key"),
        (("add", "a b"), "'a b' cannot be the name of a key"),
        (("add", "bob", "--expires", "soon"), "'soon' is no time: give one such as 90m, 12h, 30d or 8w"),
        (("add", "bob", "--expires", "2001-01-01"), "'2001-01-01' is over already"),
        (("add", "bob", "--max-concurrent", "0"), "0 is not in the range"),
        (("add", "bob", "--model", ""), "a model needs a name"),
        (("revoke", "alcie"), "no key called 'alcie'; did you mean 'alice'?"),
    ],
)
def test_what_is_wrong_is_one_clear_line(run, state: StateDir, arguments: tuple[str, ...], message: str) -> None:
    KeyFile(state).add("alice", now=0.0)
    result = run("keys", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [each.name for each in KeyFile(state).read()] == ["alice"]


def test_keys_belong_to_the_deployment_that_is_named(run, state: StateDir) -> None:
    other = deployment("other", auth="on")
    assert run("keys", "add", "alice").exit_code == 5
    assert run("keys", "add", "alice", "--name", "other").exit_code == 0
    assert (len(KeyFile(state).read()), len(KeyFile(other).read())) == (0, 1)


def test_where_no_key_is_asked_for_a_note_says_so(run, home: Path) -> None:
    deployment("open", auth="auto")
    result = run("keys", "add", "alice")
    assert result.exit_code == 0
    assert "note: open asks nobody for a key (security.auth is auto)" in result.stderr


def test_names_of_tenants_are_completed(state: StateDir) -> None:
    from click.shell_completion import ShellComplete

    from hpcserve.cli import main

    KeyFile(state).add("alice", now=0.0)
    completion = ShellComplete(main, {}, "hpcserve", "_HPCSERVE_COMPLETE")
    assert [item.value for item in completion.get_completions(["keys", "revoke"], "al")] == ["alice"]


NOON = datetime(2026, 11, 5, 12).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90m", 5400), ("12h", 43200), ("30d", 2592000), ("8w", 4838400), ("2026-11-05", 43200)]
)
def test_times_end_so_long_from_now_or_with_the_day(text: str, seconds: int) -> None:
    assert parse_expiry(text, NOON) == pytest.approx(NOON + seconds)


@pytest.mark.parametrize("text", ["", "0d", "-1d", "1.5d", "30", "1y", "2026-11-04", "2026-13-01", "9999-12-31"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_expiry(text, NOON)
