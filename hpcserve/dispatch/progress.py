"""What one sequence has produced, over all its workers, and the request that the next worker gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from hpcserve.dispatch.agents import OnOutput
from hpcserve.errors import BadRequest, EngineError, HpcserveError, WorkerLeaving, WorkerLost
from hpcserve.observability.metrics import DispatchCounts
from hpcserve.types import Caller, EngineOutput, EngineRequest, KvHandle, WorkerId


@dataclass
class Progress:
    """One sequence. `take` is given every delta; it raises what ends the request, or moves it."""

    request: EngineRequest
    on_output: OnOutput
    on_prefilled: Callable[[], None]
    caller: Caller
    on_taken: Callable[[WorkerId], None]  # told from whom KV was fetched, or will not be any more
    counts: DispatchCounts
    token_ids: list[int] = field(default_factory=list)
    lost_on: list[WorkerId] = field(default_factory=list)  # those that left included
    num_lost: int = 0  # without those that left
    finished: bool = False
    is_prefilling: bool = True  # nothing has come of the worker that has it now
    kv: KvHandle | None = None  # to prompt and tokens so far, of a worker that leaves
    last_at: float = 0.0  # when the newest delta came; 0: there was none

    def take(self, output: EngineOutput) -> None:
        """Take one delta. Called for every token of every request: keep it short."""
        if output.finish_reason is not None or self.is_prefilling:
            output = self._checked(output)
        self.token_ids += output.token_ids
        self.last_at = time.perf_counter()
        self.on_output(output)

    def drop_kv(self) -> None:
        """Need the KV no more that a leaving worker holds."""
        if self.kv is not None:
            self.on_taken(self.kv.source)
            self.kv = None

    def remaining(self) -> EngineRequest:
        """Return the request as the next worker gets it: what was generated has become prompt."""
        done = len(self.token_ids)
        if not done:
            return self.request
        sampling = self.request.sampling
        return msgspec.structs.replace(
            self.request,
            token_ids=self.request.token_ids + self.token_ids,
            num_resumed=self.request.num_resumed + done,
            sampling=msgspec.structs.replace(
                sampling, max_tokens=sampling.max_tokens - done, min_tokens=max(0, sampling.min_tokens - done)
            ),
        )

    def _checked(self, output: EngineOutput) -> EngineOutput:
        """Look at a first or a last delta: only these say more than tokens."""
        if output.error is not None:
            raise failure(output.error, is_refusal=output.is_refusal)
        if output.finish_reason == "abort":
            raise self._left(output)
        if self.is_prefilling:
            self._begin(output)
        if self.lost_on and output.cached_tokens is not None and self.token_ids:
            output = msgspec.structs.replace(output, cached_tokens=None)  # usage counts the prompt's first reading
        self.finished = output.finish_reason is not None
        return output

    def _begin(self, output: EngineOutput) -> None:
        self.is_prefilling = False
        if output.finish_reason is None:  # else its release says so at once
            self.on_prefilled()
        if self.last_at:
            pause_s = time.perf_counter() - self.last_at
            self.counts.pauses.observe(pause_s, with_kv=self.kv is not None and output.pulled_tokens > 0)
        self.drop_kv()

    def _left(self, output: EngineOutput) -> WorkerLost:
        """Take what a worker gave with its last word, and return why the request goes on elsewhere."""
        if not output.leaves:
            return WorkerLost("the engine aborted the request")  # nobody here asked it to: the worker is going down
        if output.token_ids:  # of an engine that gives out everything at the end
            self.is_prefilling = False
            said = msgspec.structs.replace(output, finish_reason=None, leaves=False, kv=None)
            self.token_ids += said.token_ids
            self.last_at = time.perf_counter()
            self.on_output(said)
        self.drop_kv()
        self.kv = output.kv
        return WorkerLeaving("the worker leaves")


def failure(why: str, *, is_refusal: bool) -> HpcserveError:
    """Return the error that an engine's last output stands for."""
    return BadRequest(f"the engine refuses this request: {why}") if is_refusal else EngineError(why)
