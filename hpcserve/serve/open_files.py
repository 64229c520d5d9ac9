"""How many connections a process may hold: every one is an open file, and login nodes often allow 1,024 at first."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger(__name__)

_ENOUGH = 8192


def raise_open_files_limit() -> int:
    """Raise this process's soft limit of open files to the hard one, and return it; warns if that is low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < _ENOUGH:
        log.warning("at most %d open files, so about as many clients at once; ask for a higher hard limit", hard)
    return hard
