"""`hpcserve batch run` as a shell sees it: files, exit codes, what it prints."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_endpoint import FakeEndpoint, fake_endpoint
from rich.console import Console

from hpcserve.batch.progress import duration, line, show, summary_lines
from hpcserve.batch.tally import Tally
from hpcserve.cli import main


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    """An endpoint on a loop of its own: commands have theirs."""
    ready = threading.Event()
    found: list[FakeEndpoint] = []
    ended = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with fake_endpoint() as fake:
            found.append(fake)
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield found[0]
    loop.call_soon_threadsafe(ended.set)
    thread.join(10)
    loop.close()


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPCSERVE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("HPCSERVE_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(main, ["batch", "run", *args])


def test_prompts_are_answered_and_summed_up(directory: Path, endpoint: FakeEndpoint) -> None:
    (directory / "in.txt").write_text("one\ntwo\n")
    options = ("in.txt", "-o", "out.jsonl", "--endpoint", endpoint.url, "--prompts", "--system", "S")
    done = run(*options, "--max-tokens", "4")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[:2] == [
        "2 of 2 requests finished, 0 failed",
        "20 prompt tokens (50% prefix hits), 8 output tokens",
    ]
    assert sorted(path.name for path in directory.glob("out*")) == ["out.jsonl", "out.ledger"]
    body = endpoint.bodies[0]
    assert (body["priority"], body["model"], body["max_tokens"]) == (100, "mock", 4)
    assert body["messages"][0] == {"role": "system", "content": "S"}
    again = run(*options, "--max-tokens", "5")
    assert again.exit_code == 2
    assert again.stderr.startswith(
        "error: the results so far were made with max_tokens = 4, not 5; --fresh starts over"
    )


def test_the_exit_code_says_that_some_failed(directory: Path, endpoint: FakeEndpoint) -> None:
    (directory / "in.txt").write_text("one\nbad\n")
    done = run("in.txt", "-o", "out.jsonl", "--endpoint", endpoint.url, "--prompts", "--json")
    assert done.exit_code == 3, done.output
    told = json.loads(done.stdout)
    assert (told["requests"], told["finished"], told["failed"], told["complete"]) == (2, 2, 1, True)
    assert "gpu_hours" not in told
    assert done.stderr == "failed requests are in out.errors.jsonl\n"
    again = run("in.txt", "-o", "out.jsonl", "--endpoint", endpoint.url, "--prompts")
    assert again.exit_code == 3
    assert again.stderr.splitlines()[0] == "going on: 2 of 2 requests are finished"


def test_every_problem_of_an_input_is_a_line(directory: Path, endpoint: FakeEndpoint) -> None:
    (directory / "in.jsonl").write_text("{\n[]\n")
    done = run("in.jsonl", "-o", "out.jsonl", "--endpoint", endpoint.url)
    assert done.exit_code == 2
    assert [text.partition(": ")[2][:7] for text in done.stderr.splitlines()[:2]] == ["line 1:", "line 2:"]
    assert not endpoint.asked
    assert not (directory / "out.jsonl").exists()


def test_options_that_do_not_go_together_are_said(directory: Path, endpoint: FakeEndpoint) -> None:
    (directory / "in.jsonl").touch()
    for options, message in [
        (("--endpoint", endpoint.url, "--max-tokens", "4"), "--max-tokens is for --prompts"),
        (("--endpoint", endpoint.url, "--name", "x"), "--endpoint and --name say the same"),
        (("--key-file", "in.jsonl"), "--key-file is for --endpoint"),
        (("--endpoint", endpoint.url, "--key-file", "none"), "cannot read a key in none"),
    ]:
        done = run("in.jsonl", "-o", "out.jsonl", *options)
        assert done.exit_code == 2
        assert message in done.stderr
    assert run("in.jsonl", "-o", "out.jsonl").exit_code == 5, "no deployment"


async def test_a_line_is_printed_now_and_then_where_there_is_no_terminal() -> None:
    said: list[str] = []
    enough = asyncio.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            enough.set()

    tally = Tally(1_000, num_before=10)
    tally.num_done, tally.num_failed, tally.prompt_tokens, tally.cached_tokens = 20, 1, 100, 25
    showing = asyncio.create_task(show(tally, Console(force_terminal=False), say, every_s=0.01))
    async with asyncio.timeout(10):
        await enough.wait()
    showing.cancel()
    assert said[0].startswith("30 of 1,000, ")
    assert "25% prefix hits, 1 failed, " in said[0]
    assert said[0].endswith(" left")


async def test_a_terminal_gets_a_bar() -> None:
    console = Console(force_terminal=True, width=200, record=True, file=StringIO())
    showing = asyncio.create_task(show(Tally(4, num_before=1), console, print))
    await asyncio.sleep(0)
    showing.cancel()
    await asyncio.gather(showing, return_exceptions=True)
    text = console.export_text()
    assert "25%" in text
    assert "1 of 4" in text


def test_a_summary_has_gpu_hours_where_gpus_are_known() -> None:
    tally = Tally(2)
    tally.started -= 1800
    assert tally.summary(8 * 1800)["gpu_hours"] == pytest.approx(4, rel=0.01)
    assert summary_lines(tally, 8 * 1800)[-1] == "4.00 GPU-hours"
    assert "left" not in line(tally)


@pytest.mark.parametrize(("seconds", "said"), [(3.4, "3 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    assert duration(seconds) == said
