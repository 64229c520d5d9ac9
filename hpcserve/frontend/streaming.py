"""Streams the choices of a job as server-sent events. What a chunk looks like is its endpoint's business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec
from aiohttp import web

from hpcserve.errors import HpcserveError
from hpcserve.frontend.backend import OnOutput
from hpcserve.frontend.context import FRONTEND, RECORD
from hpcserve.frontend.errors import error_body, id_headers
from hpcserve.frontend.generation import Generation, Job, as_hpcserve_error
from hpcserve.frontend.replies import Usage
from hpcserve.frontend.sse import SseStream
from hpcserve.types import EngineOutput

DONE = b"data: [DONE]\n\n"


class ChunkFormat(Protocol):
    """The events of one endpoint, for one job."""

    def preamble(self) -> bytes:
        """Return the events that precede the first delta."""
        ...

    def text_chunk(self, index: int) -> tuple[bytes, bytes] | None:
        """Return what stands before and after the JSON string of a delta that is nothing but text.

        None: every delta goes through `chunk`, because no two events are alike.
        """
        ...

    def chunk(self, index: int, output: EngineOutput) -> bytes:
        """Return the events of any other delta: parsed, with logprobs, or with a finish reason. May be empty."""
        ...

    def ending(self, usage: Usage) -> bytes:
        """Return the events after the last delta, such as the usage and what says that the stream is complete."""
        ...

    def failure(self, error: HpcserveError) -> bytes:
        """Return the events that end a stream which failed after its first delta."""
        ...


async def stream_job(request: web.Request, job: Job, chunks: ChunkFormat) -> web.StreamResponse:
    """Run `job` and stream it. What fails before the first delta is raised; what fails later is the last event."""
    frontend, record = request.app[FRONTEND], request[RECORD]
    stream = SseStream(request, chunks.preamble(), id_headers(request), _count_drops(request))
    is_single = len(job.requests) == 1
    generation = Generation(frontend, record, job, lambda index: _delivery(stream, chunks, index, is_single))
    try:
        await generation.run()
    except Exception as err:
        if not stream.has_started:
            raise
        error = as_hpcserve_error(err)
        record.error = error.message
        await stream.finish(chunks.failure(error))
    else:
        await stream.finish(chunks.ending(generation.usage()))
    return stream.response


def event(value: dict[str, object]) -> bytes:
    """Return a server-sent event with an object."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def failure_event(error: HpcserveError) -> bytes:
    """Return OpenAI's event for an error."""
    return b"data: " + error_body(error) + b"\n\n"


def _delivery(stream: SseStream, chunks: ChunkFormat, index: int, is_single: bool) -> OnOutput:
    def deliver(output: EngineOutput) -> None:
        events = chunks.chunk(index, output)
        if output.finish_reason is not None and is_single:
            stream.hold(events)
        elif events:
            stream.send(events)

    text_chunk = chunks.text_chunk(index)
    if text_chunk is None:
        return deliver
    head, tail = text_chunk

    def deliver_text(output: EngineOutput) -> None:
        if output.finish_reason is None and not output.logprobs:
            stream.send_text(head, output.text, tail)
        else:
            deliver(output)

    return deliver_text


def _count_drops(request: web.Request) -> Callable[[], None]:
    metrics = request.app[FRONTEND].metrics

    def count() -> None:
        metrics.slow_clients += 1

    return count
