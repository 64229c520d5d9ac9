"""Runs the sequences of one HTTP request on the backend, and counts what they gave. Formats nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET

from hpcserve.errors import BadRequest, DeadlineExceeded, EngineError, HpcserveError, Unavailable
from hpcserve.frontend.backend import OnOutput
from hpcserve.frontend.context import Frontend, RequestRecord
from hpcserve.frontend.replies import CompletionTokensDetails, PromptTokensDetails, Usage
from hpcserve.types import Caller, EngineOutput, EngineRequest, FinishReason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What one HTTP request asks the engines for: `num_choices` sequences for each prompt, in the order of prompts."""

    request_id: str  # as in the response, such as chatcmpl-…
    created: int  # Unix time
    model: str
    requests: Sequence[EngineRequest]
    num_choices: int
    caller: Caller
    include_usage: bool = False

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(each.token_ids) for each in self.requests[:: self.num_choices])


class Choice:
    """One sequence while it runs: what it counted. Deltas are passed on to `deliver`, failures are kept."""

    __slots__ = (
        "_deliver",
        "_last_at",
        "_observe_itl",
        "_on_first",
        "cached_tokens",
        "error",
        "finish_reason",
        "is_refused",
        "num_tokens",
        "pulled_tokens",
        "reasoning_tokens",
    )

    def __init__(
        self, deliver: OnOutput, on_first: Callable[[float], None], observe_itl: Callable[[float], None]
    ) -> None:
        self._deliver = deliver
        self._on_first: Callable[[float], None] | None = on_first
        self._observe_itl = observe_itl
        self._last_at = 0.0
        self.num_tokens = 0
        self.cached_tokens: int | None = None
        self.pulled_tokens = 0
        self.reasoning_tokens: int | None = None  # where a reasoning parser counts them
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.is_refused = False

    def on_output(self, output: EngineOutput) -> None:
        """Take one delta. Called for every token of every request: keep it short."""
        now = time.perf_counter()
        if self._on_first is None:
            self._observe_itl(now - self._last_at)
        else:
            self._on_first(now)
            self._on_first = None
        self._last_at = now
        self.num_tokens += len(output.token_ids)
        if output.cached_tokens is not None and self.cached_tokens is None:
            self.cached_tokens = output.cached_tokens
            self.pulled_tokens = output.pulled_tokens
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            if output.parsed is not None:
                self.reasoning_tokens = output.parsed.reasoning_tokens
            if output.finish_reason in ("error", "abort"):
                self.error = output.error
                self.is_refused = output.is_refusal
                return
        self._deliver(output)

    def end(self) -> None:
        """Let go of whom it called: else a request and all its tokens stay in memory until cycles are looked for."""
        self._on_first, self._deliver = None, _ignore

    def raise_failure(self) -> None:
        """Raise what the engine said went wrong, if it did."""
        if self.is_refused:
            raise BadRequest(f"the engine refuses this request: {self.error or 'no reason given'}")
        if self.finish_reason == "error":
            raise EngineError(f"the engine failed on this request: {self.error or 'no reason given'}")
        if self.finish_reason == "abort":
            raise Unavailable("the request was aborted: the service is going down or was told to; try again")
        if self.finish_reason is None:
            raise EngineError("the engine ended this request without a finish reason")


def _ignore(output: EngineOutput) -> None:
    """Take what comes after the end: nothing does."""


class Generation:
    """All sequences of one HTTP request, from start to end."""

    def __init__(
        self, frontend: Frontend, record: RequestRecord, job: Job, deliver_to: Callable[[int], OnOutput]
    ) -> None:
        """`deliver_to(index)` is called once a choice, and returns what takes its deltas."""
        self._frontend = frontend
        self._metrics = frontend.metrics
        self._record = record
        self._job = job
        record.job_id, record.model = job.request_id, job.model
        self._first_at: float | None = None
        priority = job.requests[0].priority
        self._is_online = priority < frontend.config.batches.priority  # else waiting says nothing about the service
        observe_itl = frontend.metrics.itl.observe
        self.choices = [Choice(deliver_to(index), self.first_output, observe_itl) for index in range(len(job.requests))]

    async def run(self) -> None:
        """Run everything. Raises an `HpcserveError` when one sequence fails; the others are aborted then."""
        self._metrics.inflight += 1
        self._metrics.queued += 1
        self._record.tenant.meter.count_tokens(self._job.num_prompt_tokens)
        limit_s = self._frontend.config.frontend.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._run_all()
        except TimeoutError as err:
            raise DeadlineExceeded(f"the request took longer than {limit_s:g} s (frontend.request_timeout_s)") from err
        finally:
            for choice in self.choices:
                choice.end()
            self._account()

    def first_output(self, now: float) -> None:
        """Note the first delta of a choice; `now` is from `time.perf_counter`."""
        if self._first_at is None:
            self._first_at = now
            self._metrics.queued -= 1
            self._record.ttft_s = now - self._record.started_at
            if self._is_online:
                self._metrics.ttft.observe(self._record.ttft_s)

    def usage(self) -> Usage:
        """Return what the client is told of the tokens."""
        prompt = self._job.num_prompt_tokens
        generated = sum(each.num_tokens for each in self.choices)
        reasoning = [each.reasoning_tokens for each in self.choices if each.reasoning_tokens is not None]
        return Usage(
            prompt_tokens=prompt,
            total_tokens=prompt + generated,
            completion_tokens=generated,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._cached_tokens()),
            completion_tokens_details=CompletionTokensDetails(sum(reasoning)) if reasoning else UNSET,
        )

    async def _run_all(self) -> None:
        pairs = list(zip(self._job.requests, self.choices, strict=True))
        if len(pairs) == 1:
            await self._run_one(*pairs[0])
            return
        try:
            async with asyncio.TaskGroup() as group:
                for request, choice in pairs:
                    group.create_task(self._run_one(request, choice))
        except BaseExceptionGroup as err:
            raise err.exceptions[0] from err

    async def _run_one(self, request: EngineRequest, choice: Choice) -> None:
        if self._record.span is not None:
            request = msgspec.structs.replace(request, traceparent=self._record.span.traceparent)
        await self._frontend.backend.run(request, choice.on_output, self._job.caller)
        choice.raise_failure()

    def _cached_tokens(self) -> int:
        # The other choices of a prompt find it cached by the first; counting those would exceed the prompt.
        return sum(each.cached_tokens or 0 for each in self.choices[:: self._job.num_choices])

    def _account(self) -> None:
        metrics, record = self._metrics, self._record
        metrics.inflight -= 1
        record.prompt_tokens = self._job.num_prompt_tokens
        record.cached_tokens = self._cached_tokens()
        record.generated_tokens = sum(each.num_tokens for each in self.choices)
        if self._first_at is None:
            metrics.queued -= 1
            record.tenant.meter.count_tokens(-record.prompt_tokens)
        else:
            metrics.prompt_tokens += record.prompt_tokens
            self._observe_whole(time.perf_counter(), self._first_at)
            self._account_tenant()
        metrics.cached_tokens += record.cached_tokens
        metrics.pulled_tokens += sum(each.pulled_tokens for each in self.choices)
        metrics.generation_tokens += record.generated_tokens
        for choice in self.choices:
            metrics.finished[choice.finish_reason or "abort"] += 1
        record.finish_reason = ",".join(dict.fromkeys(each.finish_reason or "abort" for each in self.choices))

    def _observe_whole(self, now: float, first_at: float) -> None:
        metrics, record = self._metrics, self._record
        if self._is_online:
            metrics.e2e.observe(now - record.started_at)
        metrics.prompt_size.observe(record.prompt_tokens)
        metrics.generation_size.observe(record.generated_tokens)
        longest = max(each.num_tokens for each in self.choices)
        if longest > 1:
            metrics.tpot.observe((now - first_at) / (longest - 1))

    def _account_tenant(self) -> None:
        record = self._record
        record.tenant.meter.count_tokens(record.generated_tokens)
        if record.tenant.name:
            used = self._metrics.tenants[record.tenant.name]
            used.prompt_tokens += record.prompt_tokens
            used.cached_tokens += record.cached_tokens
            used.generated_tokens += record.generated_tokens


def as_hpcserve_error(error: Exception) -> HpcserveError:
    """Return what the client may be told about an exception that nobody translated; logs the rest."""
    if isinstance(error, HpcserveError):
        return error
    log.error("a request failed in a way that nobody foresaw", exc_info=error)
    return HpcserveError("internal error; see the log")
