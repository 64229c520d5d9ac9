"""Logging of every hpcserve process: one line a record on standard error, which the process's log file captures.

A line is text, or with `log_format: json` one JSON object. What other packages log looks the same, as long as they
leave their records to the root logger; what a library prints by itself stays as it is.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Literal

import msgspec

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_LEVELS = {"WARNING": "warning", "INFO": "info", "DEBUG": "debug", "ERROR": "error", "CRITICAL": "critical"}
_encode = msgspec.json.Encoder().encode


class LogEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A log message that has fields: give an instance where logging takes a message.

    `str` of it is the line of a text log. In JSON its fields stand beside `message`.
    """

    def __str__(self) -> str:
        raise NotImplementedError

    def summary(self) -> str:
        """Return the `message` of a JSON line, which need not repeat the fields."""
        raise NotImplementedError


def configure_logging(level: str, log_format: LogFormat = "text") -> None:
    """Send `hpcserve` records of `level` ("debug" … "error") and up, and everybody's warnings, to standard error.

    Called before `distributed` is imported, which else gives its records a handler and a format of its own.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("hpcserve").setLevel(level.upper())
    # no line shows who of the process logged it, and each costs time a record
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False
    if log_format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught


class JsonFormatter(logging.Formatter):
    """One JSON object a record: `ts` (RFC 3339, UTC), `level`, `logger`, `message`, and the fields of a `LogEvent`."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._date = ""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        event = record.msg if isinstance(record.msg, LogEvent) else None
        line = _Line(
            ts=self._timestamp(record.created),
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

    def _timestamp(self, created: float) -> str:
        second = int(created)
        if second != self._second:
            self._second, self._date = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._date}.{int(created * 1e3) % 1000:03d}Z"


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


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger("hpcserve").critical("the process ends", exc_info=(kind, error, traceback))
