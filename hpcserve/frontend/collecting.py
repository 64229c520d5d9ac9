"""Collects the deltas of a job for a response in one piece."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from hpcserve.frontend.backend import OnOutput
from hpcserve.frontend.context import FRONTEND, RECORD, Frontend, RequestRecord
from hpcserve.frontend.generation import Generation, Job
from hpcserve.frontend.replies import Usage
from hpcserve.types import EngineOutput, FinishReason, ParsedDelta, TokenLogprob


@dataclass
class Collected:
    """All deltas of one choice, put together."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    parsed: ParsedDelta | None = None  # of the whole text, where it is parsed
    embedding: bytes | None = None  # where that was asked for

    @property
    def text(self) -> str:
        """The generated text."""
        return "".join(self.texts)

    def add(self, output: EngineOutput) -> None:
        """Take one delta."""
        self.texts.append(output.text)
        self.token_ids.extend(output.token_ids)
        self.logprobs.extend(output.logprobs)
        self.parsed = output.parsed
        self.embedding = output.embedding
        self.finish_reason = output.finish_reason
        self.stop_reason = output.stop_reason


async def collect_job(request: web.Request, job: Job) -> tuple[list[Collected], Usage]:
    """Run the job of an HTTP request; see `collect`."""
    return await collect(request.app[FRONTEND], request[RECORD], job)


async def collect(frontend: Frontend, record: RequestRecord, job: Job) -> tuple[list[Collected], Usage]:
    """Run `job`; return its choices and the usage. Raises an `HpcserveError` when one choice fails."""
    collected = [Collected() for _ in job.requests]

    def deliver_to(index: int) -> OnOutput:
        return collected[index].add

    generation = Generation(frontend, record, job, deliver_to)
    await generation.run()
    return collected, generation.usage()
