"""Logging of every hpcserve process: one line a record on standard error, which the process's log file captures.

A line is text, or with `log_format: json` one JSON object. What other packages log looks the same, as long as they
leave their records to the root logger; what a library prints by itself stays as it is.
"""

from __future__ import annotations

import logging
import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Literal

import msgspec

LogFormat = Literal["text", "json"]

_LEVELS = {"WARNING": "warning", "INFO": "info", "DEBUG": "debug", "ERROR": "error", "CRITICAL": "critical"}
_encode = msgspec.json.Encoder().encode


class LogEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A log message that has fields: give an instance where logging takes a message.

    `str` of it is the line of a text log. In JSON its fields stand beside `message`.
    """

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def summary(self) -> str:
        """Return the `message` of a JSON line, which need not repeat the fields."""


def configure_logging(level: str, log_format: LogFormat = "text") -> None:
    """Send `hpcserve` records of `level` ("debug" … "error") and up, and everybody's warnings, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("hpcserve").setLevel(level.upper())
    # no line shows who of the process logged it, and each costs time a record
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    if log_format == "json":
        _take_over()
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught


class TextFormatter(logging.Formatter):
    """Local time, level, logger and message, as the standard library would write them, in half its time."""

    def __init__(self) -> None:
        super().__init__("%(message)s")
        self._now = _Clock("%Y-%m-%d %H:%M:%S", time.localtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end, and lines for a traceback."""
        text = super().format(record) if record.exc_info or record.stack_info else record.getMessage()
        date, ms = self._now.at(record.created)
        return f"{date},{ms:03d} {record.levelname:<7} {record.name}: {text}"


class JsonFormatter(logging.Formatter):
    """One JSON object a record: `ts` (RFC 3339, UTC), `level`, `logger`, `message`, and the fields of a `LogEvent`."""

    def __init__(self) -> None:
        super().__init__()
        self._now = _Clock("%Y-%m-%dT%H:%M:%S", time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        event = record.msg if isinstance(record.msg, LogEvent) else None
        date, ms = self._now.at(record.created)
        line = _Line(
            ts=f"{date}.{ms:03d}Z",
            level=_LEVELS.get(record.levelname) or record.levelname.lower(),
            logger=record.name,
            message=record.getMessage() if event is None else event.summary(),
            exception=self.formatException(record.exc_info) if record.exc_info else None,
        )
        try:
            text = _encode(line) if event is None else _encode(line)[:-1] + b"," + _encode(event)[1:]
        except UnicodeEncodeError:  # half a surrogate pair, as file names that are not UTF-8 have
            text = _encode(_encodable({**msgspec.to_builtins(line), **(msgspec.to_builtins(event) if event else {})}))
        return text.decode()


class _Clock:
    """Formats the date of one second once."""

    def __init__(self, pattern: str, calendar: Callable[[float], time.struct_time]) -> None:
        self._pattern = pattern
        self._calendar = calendar
        self._second = -1
        self._date = ""

    def at(self, unix_time: float) -> tuple[str, int]:
        """Return the date to the second, and the milliseconds."""
        second = int(unix_time)
        if second != self._second:
            self._second, self._date = second, time.strftime(self._pattern, self._calendar(second))
        return self._date, int(unix_time * 1e3) % 1000


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every JSON line has."""

    ts: str
    level: str
    logger: str
    message: str
    exception: str | None = None


def _encodable(fields: dict[str, object]) -> dict[str, object]:
    return {
        name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _take_over() -> None:
    """Send to the root logger what packages that were imported before send to a stream by a handler of their own."""
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            own = [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]
            for handler in own:
                logger.removeHandler(handler)
            if own:
                logger.propagate = True


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger("hpcserve").critical("the process ends", exc_info=(kind, error, traceback))
