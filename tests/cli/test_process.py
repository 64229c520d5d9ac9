"""The command as a process: exit codes, real signals, a real terminal, and what is imported for `--help`."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FAKE = str(Path(__file__).with_name("fake_serve.py"))
UP = ("up", "--engine", "mock", "--cluster", "local")


def hpcserve(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from hpcserve.cli import main; main(prog_name='hpcserve')", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def attached(*args: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen([sys.executable, FAKE, *args], stdout=subprocess.PIPE, stderr=stderr, text=True)
    with child:
        try:
            yield child
        finally:
            child.kill()


def wait_for(child: subprocess.Popen[str], stream: str, text: str) -> None:
    for line in getattr(child, stream):
        if text in line:
            return
    pytest.fail(f"{text!r} never came")


@pytest.mark.parametrize(
    ("args", "exit_code", "line"),
    [
        (("--help",), 0, ""),
        (("version",), 0, ""),
        (("nonsense",), 2, "error: no command 'nonsense'; valid: batch, bench, completion"),
        (("up", "--set", "x=1"), 2, "error: x (--set): unknown key"),
        (("up", "--config", "/nowhere.yaml"), 2, "error: configuration file /nowhere.yaml cannot be read"),
        (("down", "--name", "nobody"), 5, "error: no deployment called 'nobody'"),
        (("key",), 5, "error: no deployment was started here"),
    ],
)
def test_exit_codes(home: Path, args: tuple[str, ...], exit_code: int, line: str) -> None:
    done = hpcserve(*args)
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == bool(line)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_serving_stops_it_in_good_order(home: Path, number: signal.Signals) -> None:
    with attached("quick-stop", *UP) as child:
        wait_for(child, "stdout", "hpcserve down")
        child.send_signal(number)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "fake: stop force=False\nfake: stopped\n" in errors
    assert "Traceback" not in errors


def test_a_second_signal_forces(home: Path) -> None:
    with attached("slow-stop", *UP) as child:
        wait_for(child, "stdout", "hpcserve down")
        child.send_signal(signal.SIGINT)
        wait_for(child, "stderr", "fake: stop force=False")
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "fake: stop force=True\nfake: stopped\n" in errors


def test_standard_output_is_json_alone(home: Path) -> None:
    with attached("quick-stop", *UP, "--detach", "--json") as child:
        output, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert json.loads(output)["phase"] == "serving"


def test_a_reader_that_went_away_is_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # it would hide what is left to flush at the end
    with attached("quick-stop", *UP, "--detach") as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(timeout=30) == 0


def test_on_a_terminal_there_is_a_live_table(home: Path) -> None:
    ours, theirs = pty.openpty()
    with attached("quick-stop", *UP, "--detach", stderr=theirs) as child:
        os.close(theirs)
        assert child.wait(timeout=30) == 0
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # EIO: the other side is closed
        pass
    finally:
        os.close(ours)
    assert b"both-0-a1" in shown
    assert b"READY" in shown
    assert b"\x1b[" in shown


def test_a_terminal_that_goes_away_stops_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    ours, theirs = pty.openpty()
    with attached("quick-stop", *UP, stderr=theirs) as child:
        os.close(theirs)
        wait_for(child, "stdout", "hpcserve down")
        os.close(ours)
        child.send_signal(signal.SIGHUP)
        assert child.wait(timeout=30) == 0


def test_help_imports_nothing_heavy() -> None:
    heavy = (
        "pydantic",
        "dask",
        "distributed",
        "rich",
        "aiohttp",
        "yaml",
        "msgspec",
        "asyncio",
        "vllm",
        "torch",
        "nixl",
    )
    code = (
        "import sys\nfrom hpcserve.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.strip() == "[]"
    assert "Exit codes:" in done.stdout


def test_commands_that_talk_to_a_deployment_load_no_part_of_it() -> None:
    parts = ("aiohttp", "numpy", "dask", "distributed", "tokenizers", "jinja2", "vllm", "torch", "nixl")
    code = f"import sys, hpcserve.serve\nprint([name for name in {parts} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
