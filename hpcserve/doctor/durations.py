"""Spans of time, and hours that are paid for, in words for people. Pure."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """Return a span such as `45 s`, `12 min`, `3 h 20 min` or `2 d 4 h`; two units at most."""
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(hours + minutes / 60), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def as_walltime(seconds: float) -> str:
    """Return a span as sbatch takes it, rounded down to minutes: `[days-]hours:minutes:00`."""
    hours, rest = divmod(int(seconds), 3600)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02}:{rest // 60:02}:00"
    return f"{days}-{clock}" if days else clock


def hours_in_words(hours: float) -> str:
    """Return a number of hours with as many digits as matter: `0.0175`, `3.42`, `1,234.5`, `12`."""
    if hours and hours < 1:
        return f"{hours:.3g}"
    text = f"{hours:,.2f}" if hours < 100 else f"{hours:,.1f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
