"""Finds stop strings in text that comes in pieces."""

from __future__ import annotations


class StopStrings:
    """Passes text on as soon as it cannot be the beginning of a stop string any more."""

    def __init__(self, stops: tuple[str, ...], *, include_stop: bool) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._include_stop = include_stop
        self._held = ""  # not passed on yet

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Add text. Returns what may be shown now, and the stop string that ended it.

        With `may_stop` False the text passes unchecked, and no stop string begins in it.
        """
        if not self._stops:
            return text, None
        text = self._held + text
        if not may_stop:
            self._held = ""
            return text, None
        found = min(((at, stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            at, stop = found
            self._held = ""
            return text[: at + len(stop) if self._include_stop else at], stop
        cut = len(text) - self._num_held(text)
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """Return what was held back; nothing follows it."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0)
