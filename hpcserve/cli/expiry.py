"""Until when something is valid, as people write it: for so long from now, or until a day is over."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta

from hpcserve.errors import ConfigError

_DURATION = re.compile(r"([1-9]\d{0,5})([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_expiry(text: str, now: float) -> float:
    """Return the Unix time at which `text` ends, after `now`. Days are this machine's. Raises `ConfigError`."""
    duration = _DURATION.fullmatch(text.strip())
    if duration:
        return now + int(duration[1]) * _SECONDS[duration[2]]
    try:
        last_day = date.fromisoformat(text.strip())
        ends = datetime.combine(last_day + timedelta(days=1), time()).timestamp()
    except (ValueError, OverflowError) as err:
        message = f"{text!r} is no time: give one such as 90m, 12h, 30d or 8w, or a day such as 2027-03-31"
        raise ConfigError(message) from err
    if ends <= now:
        raise ConfigError(f"{text!r} is over already")
    return ends


def as_day(unix_time: float) -> str:
    """Return a Unix time to the minute, in this machine's time zone."""
    return f"{datetime.fromtimestamp(unix_time).astimezone():%Y-%m-%d %H:%M}"
