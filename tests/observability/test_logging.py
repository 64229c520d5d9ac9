"""Lines of logs, as text and as JSON."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from hpcserve.observability.logging import JsonFormatter, LogEvent, TextFormatter, configure_logging

log = logging.getLogger("hpcserve.test")


class Baked(LogEvent, frozen=True, kw_only=True, omit_defaults=True):
    cake: str
    minutes: float
    burnt: bool | None = None

    def __str__(self) -> str:
        return f"baked cake={self.cake}"

    def summary(self) -> str:
        return "baked"


@pytest.fixture
def configured() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("hpcserve")
    before = root.handlers[:], root.level, ours.level, sys.excepthook
    flags = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    yield
    root.handlers[:], root.level, ours.level, sys.excepthook = before
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = flags
    logging.captureWarnings(False)


def record(message: object, *args: object, exc_info: object = None) -> logging.LogRecord:
    made = logging.LogRecord("hpcserve.test", logging.WARNING, __file__, 1, message, args, exc_info)  # type: ignore[arg-type]
    made.created = 1_767_225_599.0625
    return made


def test_a_json_line_says_when_how_grave_who_and_what():
    line = JsonFormatter().format(record('%d "cakes"\nburnt', 3))
    assert "\n" not in line
    assert json.loads(line) == {
        "ts": "2025-12-31T23:59:59.062Z",
        "level": "warning",
        "logger": "hpcserve.test",
        "message": '3 "cakes"\nburnt',
    }


def test_a_json_line_carries_the_fields_of_an_event_and_leaves_out_what_is_not_known():
    line = json.loads(JsonFormatter().format(record(Baked(cake="apple", minutes=40))))
    assert list(line) == ["ts", "level", "logger", "message", "cake", "minutes"]
    assert (line["message"], line["cake"], line["minutes"]) == ("baked", "apple", 40.0)


def test_a_text_line_looks_as_the_standard_library_writes_it():
    standard = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for made in (record("%s cakes", 3), record(Baked(cake="apple", minutes=40))):
        made.msecs = 62.0
        assert TextFormatter().format(made) == standard.format(made)


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_a_traceback_is_kept(formatter):
    try:
        raise KeyError("oven")
    except KeyError:
        text = formatter.format(record("no oven", exc_info=sys.exc_info()))
    assert "KeyError: 'oven'" in text
    assert "test_logging.py" in text


def test_dates_follow_the_clock():
    formatter = JsonFormatter()
    first, second = record("a"), record("b")
    second.created += 1
    assert [json.loads(formatter.format(each))["ts"][17:19] for each in (first, second, first)] == ["59", "00", "59"]


def test_what_is_no_unicode_is_logged_all_the_same():
    line = json.loads(JsonFormatter().format(record(Baked(cake="\udc80", minutes=1))))
    assert line["cake"] == "\\udc80"


@pytest.mark.usefixtures("configured")
def test_json_is_written_for_every_package_and_for_warnings(capsys):
    configure_logging("info", "json")
    log.info("ours")
    log.debug("nobody wants this")
    logging.getLogger("another.package").warning("theirs")
    logging.getLogger("another.package").info("nobody wants this")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("python's", stacklevel=1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["logger"] for line in lines] == ["hpcserve.test", "another.package", "py.warnings"]
    assert abs(datetime.fromisoformat(lines[0]["ts"]).timestamp() - datetime.now(UTC).timestamp()) < 60


CONFIGURE = "from hpcserve.observability.logging import configure_logging; configure_logging('info', 'json')"


@pytest.mark.parametrize("first", [(CONFIGURE, "import distributed"), ("import distributed", CONFIGURE)], ids=str)
def test_distributed_logs_json_too_and_an_end_by_an_exception_is_a_line(first):
    code = (*first, "import logging; logging.getLogger('distributed.scheduler').info('hello'); raise RuntimeError('x')")
    command = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    hello, ended = (json.loads(line) for line in done.stderr.splitlines())
    assert (hello["logger"], hello["level"], hello["message"]) == ("distributed.scheduler", "info", "hello")
    assert ended["level"] == "critical"
    assert "RuntimeError: x" in ended["exception"]
    assert done.returncode == 1
