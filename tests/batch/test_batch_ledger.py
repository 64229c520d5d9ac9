"""What is on disk after a crash at any byte, and what is made of it."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcserve.batch import OpenAILines, Plan, open_source
from hpcserve.batch.paths import Paths
from hpcserve.batch.plan import Work
from hpcserve.batch.store import Result
from hpcserve.errors import ConfigError, HpcserveError

MODELS = {"mock": 100}
NUM = 6


def write_input(path: Path, num: int = NUM, word: str = "Hi") -> None:
    with path.open("w") as file:
        for number in range(num):
            body = {"model": "mock", "messages": [{"role": "user", "content": word}], "max_tokens": 3}
            line = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def plan(directory: Path, *, is_fresh: bool = False) -> Plan:
    source = open_source(directory / "in.jsonl")
    return Plan(source, OpenAILines(), Paths(directory / "out.jsonl"), is_fresh=is_fresh)


def result(number: int, custom_id: str) -> Result:
    failed = number % 3 == 0
    text = json.dumps({"custom_id": custom_id}).encode() + b"\n"
    return Result(number, custom_id, text, failed, 400 if failed else 200, 1, ("why",) if failed else ())


def finish(work: Work, most: int = NUM) -> int:
    """Finish requests in groups of two, and return how many there were."""
    items = [item for item, _ in zip(work.items(), range(most), strict=False)]
    for start in range(0, len(items), 2):
        work.store.write([result(item.number, item.custom_id) for item in items[start : start + 2]])
    return len(items)


def ids(directory: Path) -> list[str]:
    paths = Paths(directory / "out.jsonl")
    lines = [*paths.output.read_text().splitlines(), *paths.errors.read_text().splitlines()]
    return sorted(json.loads(line)["custom_id"] for line in lines)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_input(tmp_path / "in.jsonl")
    return tmp_path


def test_what_is_finished_is_not_done_again(directory: Path) -> None:
    with plan(directory).opened(MODELS) as work:
        assert finish(work, 4) == 4
    with plan(directory).opened({}) as work:
        assert (work.tally.num_before, work.tally.num_failed) == (4, 1)
        assert finish(work) == 2
    assert ids(directory) == [f"id-{number}" for number in range(NUM)]
    paths = Paths(directory / "out.jsonl")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (paths.ledger, paths.output, paths.errors)} == {0o600}


@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_a_crash_at_any_byte_each_is_there_once(directory: Path, data: st.DataObject) -> None:
    """A crash keeps some beginning of each file, and there may be garbage behind it."""
    shutil.rmtree(directory / "work", ignore_errors=True)
    work_dir = directory / "work"
    work_dir.mkdir()
    write_input(work_dir / "in.jsonl")
    paths = Paths(work_dir / "out.jsonl")
    for _ in range(data.draw(st.integers(1, 3), "crashes")):
        with plan(work_dir).opened(MODELS) as work:
            finish(work, data.draw(st.integers(0, NUM), "finished"))
        header_end = 2 if paths.ledger.stat().st_size else 0
        header = sum(len(line) for line in paths.ledger.read_bytes().splitlines(True)[:header_end])
        for path in (paths.ledger, paths.output, paths.errors):
            if not path.exists():
                continue
            whole = path.read_bytes()
            kept = data.draw(st.integers(header if path == paths.ledger else 0, len(whole)), f"kept of {path.name}")
            garbage = data.draw(st.binary(max_size=30), f"garbage after {path.name}") if kept < len(whole) else b""
            path.write_bytes(whole[:kept] + (garbage if path == paths.ledger or kept == len(whole) else b""))
    with plan(work_dir).opened(MODELS) as work:
        finish(work)
    assert ids(work_dir) == [f"id-{number}" for number in range(NUM)]


def test_results_behind_what_the_ledger_proves_are_cut_off(directory: Path) -> None:
    with plan(directory).opened(MODELS) as work:
        finish(work, 4)
    paths = Paths(directory / "out.jsonl")
    for path in (paths.output, paths.errors, paths.ledger):
        with path.open("ab") as file:
            file.write(b'{"custom_id": "to')
    with plan(directory).opened(MODELS) as work:
        finish(work)
    assert ids(directory) == [f"id-{number}" for number in range(NUM)]


def test_results_that_somebody_removed_are_done_again_with_a_warning(directory: Path) -> None:
    with plan(directory).opened(MODELS) as work:
        finish(work, 4)
        assert work.warning is None
    (directory / "out.jsonl").unlink()
    with plan(directory).opened(MODELS) as work:
        assert "results are missing" in (work.warning or "")
        finish(work)
    assert ids(directory) == [f"id-{number}" for number in range(NUM)]


def test_a_torn_header_is_no_ledger(directory: Path) -> None:
    with plan(directory).opened(MODELS):
        pass
    paths = Paths(directory / "out.jsonl")
    paths.ledger.write_bytes(paths.ledger.read_bytes()[:-1])
    paths.output.unlink()
    with plan(directory).opened(MODELS) as work:
        assert finish(work) == NUM


def test_results_that_somebody_changed_are_left_alone(directory: Path) -> None:
    with plan(directory).opened(MODELS) as work:
        finish(work, 4)
    output = directory / "out.jsonl"
    output.write_bytes(output.read_bytes().replace(b"id-1", b"ID-1"))
    before = output.read_bytes()
    with pytest.raises(ConfigError, match=r"out\.jsonl was changed at byte"), plan(directory).opened(MODELS):
        pass
    assert output.read_bytes() == before


def test_a_changed_line_is_named(directory: Path) -> None:
    with plan(directory).opened(MODELS) as work:
        finish(work, 2)
    path = directory / "in.jsonl"
    lines = path.read_text().splitlines(True)
    for changed, message in [
        ([*lines[:4], lines[4].replace("Hi", "Ho"), lines[5]], "line 5 is the first that differs"),
        (lines[:3], r"line 4 is the first that differs \(6 lines then, 3 now\)"),
        ([*lines, lines[0]], "line 7 is the first that differs"),
    ]:
        path.write_text("".join(changed))
        with pytest.raises(ConfigError, match=message), plan(directory).opened(MODELS):
            pass
    path.write_text("".join(lines))
    with plan(directory).opened(MODELS) as work:
        assert finish(work) == 4


def test_starting_over_forgets_what_was_there(directory: Path) -> None:
    with plan(directory).opened(MODELS) as work:
        finish(work)
    write_input(directory / "in.jsonl", 3)
    with plan(directory, is_fresh=True).opened(MODELS) as work:
        assert finish(work) == 3
    assert ids(directory) == ["id-0", "id-1", "id-2"]
    _, _, *records = Paths(directory / "out.jsonl").ledger.read_text().splitlines()
    assert len(records) == 3, "nothing of the old ledger is left"


def test_a_wrong_input_does_not_cost_the_results_there_are(directory: Path) -> None:
    with plan(directory).opened(MODELS) as work:
        finish(work)
    before = ids(directory)
    (directory / "in.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match="not valid JSON"), plan(directory, is_fresh=True).opened(MODELS):
        pass
    assert ids(directory) == before


def test_an_output_without_a_ledger_is_not_overwritten(directory: Path) -> None:
    (directory / "out.jsonl").write_text("precious\n")
    with pytest.raises(ConfigError, match="is there already, without a ledger"), plan(directory).opened(MODELS):
        pass
    assert (directory / "out.jsonl").read_text() == "precious\n"


def test_two_runs_do_not_write_one_output(directory: Path) -> None:
    with (
        plan(directory).opened(MODELS),
        pytest.raises(ConfigError, match="another run is writing"),
        plan(directory).opened(MODELS),
    ):
        pass


def test_another_output_of_the_same_stem_is_refused(directory: Path) -> None:
    with plan(directory).opened(MODELS):
        pass
    other = Plan(open_source(directory / "in.jsonl"), OpenAILines(), Paths(directory / "out"))
    with pytest.raises(ConfigError, match=r"is of out\.jsonl, not of out"), other.opened(MODELS):
        pass


def test_a_disk_that_takes_no_more_is_said(directory: Path) -> None:
    with plan(directory).opened(MODELS) as work:
        (directory / "out.errors.jsonl").mkdir()
        with pytest.raises(HpcserveError, match="cannot write"):
            work.store.write([result(3, "id-2")])
        (directory / "out.errors.jsonl").rmdir()
