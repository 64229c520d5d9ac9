"""The parts of an array put together."""

import json
from pathlib import Path

import pytest

from hpcserve.batch.lines import Prompts
from hpcserve.batch.merge import Merged, find_parts, merge
from hpcserve.batch.paths import Paths
from hpcserve.batch.plan import Plan
from hpcserve.batch.shard import Shard, ShardedSource
from hpcserve.batch.source import open_source
from hpcserve.batch.store import Result
from hpcserve.errors import ConfigError

MODELS = {"m": None}


def run_part(directory: Path, index: int, num: int, *, leave: int = 0, fail: bool = False, seed: int = 0) -> Path:
    """Do one part of seven prompts, but for the last `leave`; the first one fails if told."""
    source = directory / "in.txt"
    source.write_text("".join(f"prompt {number}\n" for number in range(7)))
    output = directory / f"out.{index}.jsonl"
    plan = Plan(ShardedSource(open_source(source), Shard(index, num)), Prompts("m", {"seed": seed}), Paths(output))
    with plan.opened(MODELS) as work:
        items = [item for unit in work.units(1) for item in unit.items]
        for position, item in enumerate(items[: len(items) - leave]):
            failed = fail and position == 0
            line = json.dumps({"custom_id": item.custom_id}).encode() + b"\n"
            work.store.write([Result(item.number, item.custom_id, line, failed, 200, 1, ())])
    return output


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_every_answer_and_every_failure_of_the_parts_is_there_once(tmp_path: Path) -> None:
    parts = [run_part(tmp_path, index, 3, fail=index == 1) for index in range(3)]
    output = tmp_path / "out.jsonl"
    assert find_parts(output) == parts
    assert merge(parts, output) == Merged(3, 7, 1)
    assert sorted(ids(output) + ids(Paths(output).errors)) == [f"line-{number}" for number in range(1, 8)]
    assert len(ids(Paths(output).errors)) == 1
    assert all(part.exists() for part in parts)
    assert output.stat().st_mode & 0o777 == 0o600


def test_a_part_that_is_not_finished_is_named(tmp_path: Path) -> None:
    parts = [run_part(tmp_path, 0, 2), run_part(tmp_path, 1, 2, leave=1)]
    with pytest.raises(ConfigError, match=r"out\.1\.jsonl is not finished: 2 of 3 requests"):
        merge(parts, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_part_that_was_never_begun_is_named(tmp_path: Path) -> None:
    run_part(tmp_path, 0, 3)
    run_part(tmp_path, 2, 3)
    with pytest.raises(ConfigError, match=r"no part .*out\.1\.jsonl"):
        find_parts(tmp_path / "out.jsonl")


def test_parts_of_another_division_overlap_and_are_refused(tmp_path: Path) -> None:
    parts = [run_part(tmp_path, 0, 2), run_part(tmp_path, 1, 3)]
    with pytest.raises(ConfigError, match="lines that another part has"):
        merge(parts, tmp_path / "out.jsonl")


def test_parts_with_other_options_are_refused(tmp_path: Path) -> None:
    parts = [run_part(tmp_path, 0, 2), run_part(tmp_path, 1, 2, seed=1)]
    with pytest.raises(ConfigError, match="same input and options"):
        merge(parts, tmp_path / "out.jsonl")


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    parts = [run_part(tmp_path, 0, 1)]
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match="there already"):
        merge(parts, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"


def test_a_file_without_a_ledger_is_no_part(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="no part of a batch"):
        merge([tmp_path / "other.jsonl"], tmp_path / "out.jsonl")
