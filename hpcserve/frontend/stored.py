"""What the handlers of files and batches share: where these are kept, and whose they are."""

from __future__ import annotations

from aiohttp import web

from hpcserve.errors import NotFound
from hpcserve.frontend.context import FRONTEND, RECORD
from hpcserve.jobs import JobStore
from hpcserve.keys import OWNER


def jobs_of(request: web.Request) -> JobStore:
    """Return where files and batches are. Raises `NotFound` where there are none."""
    jobs = request.app[FRONTEND].jobs
    if jobs is None:
        raise NotFound("this deployment has no files and batches (batches.enabled is false)")
    return jobs


def owner_of(request: web.Request) -> str:
    """Return whose files and batches a request sees: where nobody is asked for a key, they are the operator's."""
    return request[RECORD].tenant.name or OWNER
