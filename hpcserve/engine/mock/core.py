"""The mock engine without time: requests in, steps out. `engine` steps it in real time, a simulator in virtual time.

It never sleeps, and looks at no clock; all times are seconds on the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from hpcserve.engine.mock.generation import Generation
from hpcserve.engine.mock.meter import Meter
from hpcserve.engine.mock.scheduler import Limits, Scheduler
from hpcserve.engine.mock.sequence import Sequence
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.tokens import TokenTable
from hpcserve.engine.mock.transfer import tokens_covered
from hpcserve.errors import HpcserveError
from hpcserve.kv.hashing import hash_blocks
from hpcserve.types import BlockHash, EngineOutput, EngineRequest, KvEvent, LoadReport, RequestId


@dataclass(frozen=True)
class Prefilled:
    """A prompt whose KV can be handed over."""

    num_tokens: int
    names: list[BlockHash]  # of its full blocks


@dataclass(frozen=True)
class StepResult:
    """What is there once the step's duration is over."""

    duration_s: float
    outputs: list[EngineOutput]
    events: list[KvEvent]
    prefilled: dict[RequestId, Prefilled]  # by `prefill_only` request that ended


@dataclass
class Totals:
    """Tokens over the engine's life."""

    prompt: int = 0
    generated: int = 0
    cached: int = 0
    pulled: int = 0
    pull_failures: int = 0


class MockCore:
    """One engine: a scheduler, and a generation for each of its sequences."""

    def __init__(self, limits: Limits, timing: TimingModel, table: TokenTable, max_model_len: int) -> None:
        self.max_model_len = min(max_model_len, limits.num_blocks * limits.block_size)
        self._scheduler = Scheduler(limits, timing)
        self._table = table
        self._generations: dict[RequestId, Generation] = {}
        self._meter = Meter()
        self._totals = Totals()

    def add(self, request: EngineRequest, *, can_pull: bool = True) -> EngineOutput | None:
        """Queue a request. Returns its last output, of reason "error", if it cannot run.

        `can_pull` says whether the request's handle, if any, is good; if not, the failure is counted and the prompt
        computed.
        """
        problem = self._find_problem(request)
        if problem is None:
            try:
                self._enqueue(request, can_pull)
            except (ValueError, HpcserveError) as err:
                problem = str(err)
        if problem is None:
            return None
        is_refusal = not request.num_resumed
        return EngineOutput(request_id=request.request_id, finish_reason="error", error=problem, is_refusal=is_refusal)

    def abort(self, request_id: RequestId) -> bool:
        """End a request now; nothing more comes of it. Returns whether there was one."""
        self._generations.pop(request_id, None)
        return self._scheduler.abort(request_id)

    def wakes_at(self, now: float) -> float | None:
        """Return when `step` can do something (see `Scheduler.wakes_at`)."""
        return self._scheduler.wakes_at(now)

    def step(self, now: float) -> StepResult:
        """Run one step that begins at `now`."""
        step = self._scheduler.step(now)
        self._meter.add(step, self._scheduler.kv_read(step.decode_context))
        self._totals.generated += len(step.emitted)
        outputs = [self._output(sequence) for sequence in step.emitted]
        prefilled = {s.request_id: self._prefilled(s) for s in step.finished if s.prefill_only}
        for sequence in step.finished:
            del self._generations[sequence.request_id]
        return StepResult(step.duration_s, outputs, step.events, prefilled)

    def load(self) -> LoadReport:
        """Return queue, use and rates of now. Rates are tokens a second of the caller's clock."""
        sequences = self._scheduler.sequences
        totals = self._totals
        return LoadReport(
            num_running=self._scheduler.num_running,
            num_waiting=len(sequences) - self._scheduler.num_running,
            waiting_tokens=sum(max(0, s.num_prompt - max(s.num_computed, s.pull_tokens)) for s in sequences.values()),
            kv_usage=self._scheduler.pool.usage,
            prefill_tokens_per_s=self._meter.prefill.per_s,
            decode_tokens_per_s=self._meter.decode.per_s,
            prompt_tokens_total=totals.prompt,
            generated_tokens_total=totals.generated,
            cached_tokens_total=totals.cached,
            pulled_tokens_total=totals.pulled,
            pull_failures_total=totals.pull_failures,
            work=self._meter.work.done(),
        )

    def _find_problem(self, request: EngineRequest) -> str | None:
        if not request.token_ids:
            return "the prompt is empty; send at least one token"
        if request.sampling.max_tokens < 1:
            return f"max_tokens is {request.sampling.max_tokens}, must be at least 1"
        if len(request.token_ids) >= self.max_model_len:
            return (
                f"the prompt has {len(request.token_ids)} tokens; with at least one of output the context "
                f"of {self.max_model_len} tokens does not hold them"
            )
        return _find_unknown(request)

    def _enqueue(self, request: EngineRequest, can_pull: bool) -> None:
        size = self._scheduler.limits.block_size
        num_prompt = len(request.token_ids)
        names = hash_blocks(request.token_ids, size, request.cache_salt)
        max_tokens = 1 if request.prefill_only else request.sampling.max_tokens
        generation = Generation(request, names, self._table, size, min(max_tokens, self.max_model_len - num_prompt))
        pull_tokens = 0
        if request.kv is not None and can_pull:
            pull_tokens = tokens_covered(request.kv, num_prompt, names, size)
        sequence = Sequence(
            request_id=request.request_id,
            num_prompt=num_prompt,
            names=names,
            writer=generation,
            priority=request.priority,
            prefill_only=request.prefill_only,
            pull_tokens=pull_tokens,
            reused_tokens=request.reused_tokens,
            moves_away=request.moves_away,
        )
        self._scheduler.add(sequence)
        self._generations[request.request_id] = generation
        self._totals.pull_failures += request.kv is not None and pull_tokens == 0

    def _output(self, sequence: Sequence) -> EngineOutput:
        generation = self._generations[sequence.request_id]
        output = generation.output()
        if generation.num_generated > 1:
            return output
        cached = sequence.cached_tokens or 0
        self._totals.prompt += sequence.num_prompt
        self._totals.cached += cached
        self._totals.pulled += sequence.pulled_tokens
        return msgspec.structs.replace(
            output, cached_tokens=cached, pulled_tokens=sequence.pulled_tokens, pull_s=sequence.pull_s
        )

    def _prefilled(self, sequence: Sequence) -> Prefilled:
        num_full = sequence.num_prompt // self._scheduler.limits.block_size
        return Prefilled(sequence.num_prompt, sequence.names[:num_full])


def _find_unknown(request: EngineRequest) -> str | None:
    """Name what the mock would have to ignore: a client must not take its text for what was asked."""
    sampling = request.sampling
    asked = {
        "structured output": sampling.structured is not None,
        "chat parsing (tools, reasoning)": request.parsing is not None,
        "embeddings": request.embeds,
        "allowed_token_ids": sampling.allowed_token_ids is not None,
        "bad_words": bool(sampling.bad_words),
    }
    unknown = [name for name, is_asked in asked.items() if is_asked]
    return f"the mock engine has no {unknown[0]}; serve a model with engine.kind: vllm" if unknown else None
