"""`hpcserve usage`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcserve.config import Config
from hpcserve.keys import KeyFile
from hpcserve.state import StateDir
from hpcserve.usage import Usage, UsageFile


@pytest.fixture
def state(home: Path) -> StateDir:
    state = StateDir.of("default")
    state.create()
    state.write_config(Config.model_validate({"engine": {"kind": "mock"}, "cluster": {"kind": "local"}}))
    return state


ALICE = Usage(
    requests=7,
    rate_limited=1,
    prompt_tokens=900,
    cached_tokens=320,
    generated_tokens=64,
    first_used=10.5,
    last_used=99.5,
)


def test_usage_lists_who_used_what_and_who_used_nothing(run, state: StateDir) -> None:
    UsageFile(state).add({"alice": ALICE})
    KeyFile(state).add("bob", now=0.0)
    head, alice, bob = run("usage").stdout.splitlines()
    assert head.split() == ["NAME", "REQUESTS", "RATE-LIMITED", "PROMPT", "CACHED", "GENERATED", "FIRST", "LAST"]
    assert alice.split()[:6] == ["alice", "7", "1", "900", "320", "64"]
    assert bob.split() == ["bob", "0", "0", "0", "0", "0", "never", "never"]


def test_usage_as_json_has_every_field(run, state: StateDir) -> None:
    UsageFile(state).add({"alice": ALICE})
    assert json.loads(run("usage", "--json").stdout) == [
        {
            "name": "alice",
            "requests": 7,
            "rate_limited": 1,
            "prompt_tokens": 900,
            "cached_tokens": 320,
            "generated_tokens": 64,
            "first_used": 10.5,
            "last_used": 99.5,
        }
    ]


def test_usage_of_nobody_is_an_empty_table(run, state: StateDir) -> None:
    assert run("usage").stdout.split()[0] == "NAME"
    assert json.loads(run("usage", "--json").stdout) == []


def test_a_damaged_file_is_one_clear_line(run, state: StateDir) -> None:
    UsageFile(state).path.write_text("{")
    result = run("usage")
    assert result.exit_code == 5
    assert "usage.json is damaged" in result.stderr
