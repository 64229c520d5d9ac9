"""Hands a request to vLLM and its outputs to a callable, one call each, in the turn of the loop in which vLLM has them.

`AsyncLLM.generate` wakes a task for every output, through an event and two generators. Here the queue that vLLM makes
for a request calls instead of keeping: `AsyncLLM.add_request` is vLLM's own, only the queue's `put` is replaced. That
fits vLLM 0.32; with another version requests run through `generate`, which is said in `Vllm.warnings`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

from hpcserve.engine.vllm.core import FITS, Vllm

logger = logging.getLogger(__name__)


class Submit(Protocol):
    """How a request is run."""

    def __call__(
        self, prompt: Any, params: Any, request_id: str, take: Callable[[Any], None], /, **options: Any
    ) -> Awaitable[None]:
        """Call `take` with each of vLLM's outputs, and return after the last. Cancelling aborts the request.

        `options` are those of `AsyncLLM.generate`. Raises what that raises, and what `take` raises, which aborts too.
        """
        ...


def submit_of(vllm: Vllm) -> Submit:
    """Return how requests are run on this vLLM."""
    from vllm import __version__

    if __version__.startswith(FITS):
        try:
            return _pushing(vllm.llm)
        except (ImportError, AttributeError) as err:
            reason = f"vLLM {__version__} does not hand out its outputs as expected ({err})"
    else:
        reason = f"vLLM {__version__} is not {FITS}x, whose outputs we know how to take"
    vllm.warnings.append(f"{reason}; every token costs more of this process's time")
    logger.warning(vllm.warnings[-1])
    return _iterating(vllm.llm)


def _iterating(llm: Any) -> Submit:
    async def submit(prompt: Any, params: Any, request_id: str, take: Callable[[Any], None], /, **options: Any) -> None:
        async with aclosing(llm.generate(prompt, params, request_id, **options)) as outputs:
            async for output in outputs:
                take(output)

    return submit


def _pushing(llm: Any) -> Submit:
    from vllm.exceptions import VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
    from vllm.v1.engine.output_processor import RequestOutputCollector

    for attribute in (RequestOutputCollector.put, RequestOutputCollector.get_nowait, llm.add_request, llm.abort):
        assert callable(attribute)

    async def submit(prompt: Any, params: Any, request_id: str, take: Callable[[Any], None], /, **options: Any) -> None:
        taker = _Taker(take)
        try:
            queue = await llm.add_request(request_id, prompt, params, **options)
            if (early := queue.get_nowait()) is not None:
                taker.put(early)
            queue.put = taker.put
            await taker.ended
        except (EngineDeadError, EngineGenerateError):
            raise
        except asyncio.CancelledError:
            await llm.abort(request_id)
            raise
        except Exception as err:
            await llm.abort(request_id)
            if err is taker.own_error or isinstance(err, VLLMError):
                raise
            raise EngineGenerateError from err

    return submit


class _Taker:
    """Stands in for the queue of one request. It never raises, which would end vLLM's reading for all requests."""

    def __init__(self, take: Callable[[Any], None]) -> None:
        self._take = take
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.own_error: Exception | None = None

    def put(self, output: Any) -> None:
        if self.ended.done():
            return
        if isinstance(output, Exception):
            self.ended.set_exception(output)
            return
        try:
            self._take(output)
        except Exception as err:  # noqa: BLE001 - the edge of vLLM's loop: `submit` raises it
            self.own_error = err
            self.ended.set_exception(err)
            return
        if output.finished:
            self.ended.set_result(None)
