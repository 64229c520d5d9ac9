"""Streams the choices of a job as server-sent events. What a chunk looks like is its endpoint's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
from aiohttp import web

from hpcserve.frontend.backend import OnOutput
from hpcserve.frontend.context import FRONTEND, RECORD
from hpcserve.frontend.errors import error_body
from hpcserve.frontend.generation import Generation, Job, as_hpcserve_error
from hpcserve.frontend.replies import Usage
from hpcserve.frontend.sse import SseStream
from hpcserve.types import EngineOutput

_DONE = b"data: [DONE]\n\n"


class ChunkFormat(Protocol):
    """The events of one endpoint, for one job."""

    def preamble(self) -> bytes:
        """Return the events that precede the first delta."""
        ...

    def text_chunk(self, index: int) -> tuple[bytes, bytes]:
        """Return what stands before and after the JSON string of a delta that is nothing but text."""
        ...

    def chunk(self, index: int, output: EngineOutput) -> bytes:
        """Return the event of any other delta: with logprobs, or with a finish reason."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the event with the usage."""
        ...


async def stream_job(request: web.Request, job: Job, chunks: ChunkFormat) -> web.StreamResponse:
    """Run `job` and stream it. What fails before the first delta is raised; what fails later is the last event."""
    frontend, record = request.app[FRONTEND], request[RECORD]
    stream = SseStream(request, chunks.preamble(), {"x-request-id": record.request_id}, _count_drops(request))
    is_single = len(job.requests) == 1
    generation = Generation(frontend, record, job, lambda index: _delivery(stream, chunks, index, is_single))
    try:
        await generation.run()
    except Exception as err:
        if not stream.has_started:
            raise
        error = as_hpcserve_error(err)
        record.error = error.message
        await stream.finish(b"data: " + error_body(error) + b"\n\n")
    else:
        usage = chunks.usage_chunk(generation.usage()) if job.include_usage else b""
        await stream.finish(usage + _DONE)
    return stream.response


def event(value: dict[str, object]) -> bytes:
    """Return a server-sent event with an object."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _delivery(stream: SseStream, chunks: ChunkFormat, index: int, is_single: bool) -> OnOutput:
    head, tail = chunks.text_chunk(index)

    def deliver(output: EngineOutput) -> None:
        if output.finish_reason is None and not output.logprobs:
            stream.send_text(head, output.text, tail)
        elif output.finish_reason is not None and is_single:
            stream.hold(chunks.chunk(index, output))
        else:
            stream.send(chunks.chunk(index, output))

    return deliver


def _count_drops(request: web.Request) -> Callable[[], None]:
    metrics = request.app[FRONTEND].metrics

    def count() -> None:
        metrics.slow_clients += 1

    return count
