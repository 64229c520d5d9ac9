"""The span "assign": from asking the head for a worker to its answer, time in the queue included."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from hpcserve.errors import HpcserveError
from hpcserve.observability.tracing import Tracer
from hpcserve.types import Assignment, RouteRequest


async def traced_assignment(
    tracer: Tracer, traceparent: str, route: RouteRequest, answer: Coroutine[Any, Any, Assignment]
) -> Assignment:
    """Return or raise what `answer` does, and record how long it took."""
    began_ns = time.time_ns()
    attributes: dict[str, str | int] = {
        "hpcserve.request_id": route.request_id,
        "hpcserve.prompt_tokens": route.num_tokens,
    }
    error: str | None = "the request was given up"
    try:
        assignment = await answer
        attributes |= _decided(assignment)
        error = None
    except (HpcserveError, asyncio.CancelledError) as err:
        error = err.message if isinstance(err, HpcserveError) else error
        raise
    finally:
        tracer.record("assign", traceparent, began_ns, attributes, error=error)
    return assignment


def _decided(assignment: Assignment) -> dict[str, str | int]:
    workers = {"decode": assignment.decode, "prefill": assignment.prefill, "source": assignment.source}
    named = {f"hpcserve.{role}_worker": str(worker) for role, worker in workers.items() if worker is not None}
    return {**named, "hpcserve.expected_cached_tokens": assignment.cached_tokens}
