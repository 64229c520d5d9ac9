"""Runs one request after the other on a vLLM that is up. Starts and stops nothing; which requests are open, it is told.

That a request resumed here (`num_resumed`) goes on as if it had never left is seen to by `seam`, `grammar` and
`resumed_sampling`, which wrap parts of vLLM.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from contextlib import aclosing
from typing import Any

import msgspec

from hpcserve.engine.protocol import OnOutput
from hpcserve.engine.vllm import translate
from hpcserve.engine.vllm.core import Prefilled
from hpcserve.engine.vllm.load import LoadMeter
from hpcserve.engine.vllm.loading import Loaded
from hpcserve.engine.vllm.parsing import ChatParser
from hpcserve.engine.vllm.refusals import why_refused
from hpcserve.engine.vllm.seam import without_held_back
from hpcserve.engine.vllm.submit import Submit
from hpcserve.engine.vllm.translate import Adjusted
from hpcserve.errors import EngineError
from hpcserve.types import EngineOutput, EngineRequest, StructuredOutput, WorkerId

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class OpenRequest:
    """A request that vLLM has, or is about to get."""

    is_first_in_line: bool  # no other prompt waited or was being computed when it came
    began: float = dataclasses.field(default_factory=time.monotonic)
    has_output: bool = False
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Runner:
    """What a request needs while it runs. `come_from` is filled by the tap on vLLM's prefills, by request."""

    def __init__(
        self, loaded: Loaded, submit: Submit, worker: WorkerId, meter: LoadMeter, come_from: dict[str, Prefilled]
    ) -> None:
        self._loaded = loaded
        self._llm = loaded.vllm.llm
        self._submit = submit
        self._worker = worker
        self._meter = meter
        self._come_from = come_from

    def refuse(self, request: EngineRequest) -> str | None:
        """Return why the request cannot run; None if it can."""
        return why_refused(request, self._loaded.info, resumes_grammars=self._loaded.resumes_grammars)

    async def run(self, request: EngineRequest, state: OpenRequest, on_output: OnOutput) -> None:
        """Hand over the outputs of a request, as `PushingEngine.run` does. Raises `EngineError` if vLLM died."""
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            await (self._embed if request.embeds else self._generate)(request, state, on_output)
        except EngineDeadError as err:
            raise EngineError("vLLM's engine died; the worker's log says why") from err
        except EngineGenerateError as err:
            if self._llm.errored:
                raise EngineError("vLLM's engine failed; the worker's log says why") from err
            on_output(translate.failed(request.request_id, f"vLLM failed on this request: {err.__cause__ or err}"))
        except (ValueError, TypeError, VLLMError) as err:  # what was asked for makes no sense to vLLM
            why = str(err)
            on_output(
                translate.failed(request.request_id, why) if state.has_output else translate.refused(request, why)
            )

    async def _generate(self, request: EngineRequest, state: OpenRequest, on_output: OnOutput) -> None:
        from vllm.inputs.engine import tokens_input

        request = self._check_handle(request)
        parser = self._parser(request)
        if parser is not None:
            request, adjusted = parser.request, parser.adjusted
        else:
            adjusted = Adjusted(structured=translate.to_structured(_wanted_structure(request)))

        def take(output: Any) -> None:
            ours = translate.to_output(request, output, self._worker)
            if ours.finish_reason == "abort":
                ours = without_held_back(request, ours)
            self._meter.generated_tokens += len(ours.token_ids)
            if not state.has_output and ours.token_ids:
                state.has_output = True
                ours = self._complete_first(request, state, ours, output)
            on_output(ours if parser is None else parser.add(ours))

        await self._submit(
            tokens_input(request.token_ids, cache_salt=request.cache_salt),
            translate.to_sampling_params(request, adjusted),
            request.request_id,
            take,
            priority=request.priority,
            reasoning_ended=adjusted.reasoning_ended,
            reasoning_parser_kwargs=adjusted.reasoning_parser_kwargs,
        )

    async def _embed(self, request: EngineRequest, state: OpenRequest, on_output: OnOutput) -> None:
        from vllm.inputs.engine import tokens_input
        from vllm.pooling_params import PoolingParams

        prompt = tokens_input(request.token_ids, cache_salt=request.cache_salt)
        params = PoolingParams(task="embed")
        stream = self._llm.encode(prompt, params, request.request_id, priority=request.priority)
        async with aclosing(stream) as outputs:
            async for output in outputs:
                come_from = self._come_from.pop(request.request_id, None) or Prefilled(output.num_cached_tokens or 0, 0)
                self._meter.prefilled(request.request_id, come_from)
                on_output(translate.to_embedding(request, output, cached_tokens=come_from.cached))

    def _parser(self, request: EngineRequest) -> ChatParser | None:
        if request.parsing is None or request.prefill_only:
            return None
        assert self._loaded.parsers is not None  # else it was refused
        return ChatParser(self._loaded.parsers, request, request.parsing)

    def _check_handle(self, request: EngineRequest) -> EngineRequest:
        """Return the request without a handle that is not for this engine or not for this prompt."""
        handle = request.kv
        if handle is None:
            return request
        if handle.transport != self._loaded.info.kv_transport:
            return self._recompute(request, f"this engine cannot pull over {handle.transport}")
        if handle.num_tokens > len(request.token_ids):
            return self._recompute(request, f"its handle covers {handle.num_tokens} tokens, more than the prompt has")
        return request

    def _complete_first(
        self, request: EngineRequest, state: OpenRequest, first: EngineOutput, theirs: Any
    ) -> EngineOutput:
        come_from = self._come_from.pop(request.request_id, None) or Prefilled(theirs.num_cached_tokens or 0, 0)
        if request.kv is not None:
            self._note_pull(request, state, come_from, theirs.metrics)
        self._meter.prefilled(request.request_id, come_from)
        if len(request.token_ids) - come_from.cached <= self._loaded.info.block_size:  # all that could be, was cached
            first = translate.say_made_in(first, time.monotonic() - state.began)
        times = theirs.metrics
        pull_s = times.scheduled_ts - times.queued_ts if come_from.pulled and times is not None else None
        return msgspec.structs.replace(
            first, cached_tokens=come_from.cached, pulled_tokens=come_from.pulled, pull_s=pull_s
        )

    def _note_pull(self, request: EngineRequest, state: OpenRequest, come_from: Prefilled, times: Any) -> None:
        assert request.kv is not None
        if come_from.pulled and state.is_first_in_line:
            made_in_s = request.kv.params.get(translate.MADE_IN, 0.0)
            self._meter.pulls.add(come_from.pulled, made_in_s + times.scheduled_ts - times.queued_ts)
        if not come_from.pulled and come_from.cached < request.kv.num_tokens:  # else it was there already
            self._count_failure(request, "its KV could not be pulled")

    def _recompute(self, request: EngineRequest, why: str) -> EngineRequest:
        self._count_failure(request, why)
        return msgspec.structs.replace(request, kv=None)

    def _count_failure(self, request: EngineRequest, why: str) -> None:
        self._meter.pull_failures += 1
        source = request.kv.source if request.kv else "?"
        logger.warning("request %s is recomputed: %s (from %s)", request.request_id, why, source)


def _wanted_structure(request: EngineRequest) -> StructuredOutput | None:
    return None if request.prefill_only else request.sampling.structured  # its token is not used, only its KV
