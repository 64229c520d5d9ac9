"""One online request on this worker, as far as leaving has to know it: what it was asked, what it has said so far."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from hpcserve.engine.protocol import AsyncEngine, OnOutput, Run
from hpcserve.types import EngineOutput, EngineRequest, KvHandle, RequestId

log = logging.getLogger(__name__)

_HANDLE_TIMEOUT_S = 5.0  # for a handle to what is cached: computing it elsewhere is better than waiting longer
_NUM_TO_EXTRAPOLATE = 2  # tokens


class Stream:
    """Passes outputs on, unless the request leaves: then its end is `leave`'s to say."""

    def __init__(self, request: EngineRequest, put: OnOutput) -> None:
        self.request = request
        self.is_leaving = False
        self.has_ended = False
        self._put = put
        self._token_ids: list[int] = []
        self._first_at = 0.0
        self._aborted: EngineOutput | None = None
        self._gone: asyncio.Event | None = None

    def take(self, output: EngineOutput) -> None:
        """Take one output of the engine. Called for every token of every request: keep it short."""
        if output.finish_reason is not None:
            self.has_ended = True
            if self.is_leaving and output.finish_reason == "abort":
                self._aborted = output
                return
        if not self._token_ids:
            self._first_at = time.monotonic()
        self._token_ids += output.token_ids
        self._put(output)

    @property
    def has_begun(self) -> bool:
        """Whether it has said anything."""
        return bool(self._token_ids)

    @property
    def is_cut(self) -> bool:
        """Whether the engine has given it up because it leaves, so that `leave` has to say the last word."""
        return self.is_leaving and (self._aborted is not None or not self.has_ended)

    async def part(self, engine: AsyncEngine) -> None:
        """Have the engine give it up, and return when its last word was said."""
        self._gone = asyncio.Event()
        self.is_leaving = True
        await engine.abort(self.request.request_id)
        await self._gone.wait()

    def end(self) -> None:
        """All is said."""
        if self._gone is not None:
            self._gone.set()

    def ends_within(self, seconds: float) -> bool:
        """Return whether it is likely to end by itself in that time: at its pace so far, at its longest."""
        if self.request.prefill_only or self.request.embeds:
            return True
        num_done = len(self._token_ids)
        if num_done < _NUM_TO_EXTRAPOLATE:
            return False
        pace_s = (time.monotonic() - self._first_at) / (num_done - 1)
        return pace_s * (self.request.sampling.max_tokens - num_done) <= seconds

    async def leave(self, run: Run, *, with_kv: bool) -> bool:
        """Say the last word after the engine has aborted the request; True if that has a handle to its KV."""
        last = self._aborted or EngineOutput(request_id=self.request.request_id, finish_reason="abort")
        self._token_ids += last.token_ids
        handle = await self._handle(run) if with_kv and self._token_ids and not self.request.embeds else None
        self._put(msgspec.structs.replace(last, leaves=True, kv=handle))
        return handle is not None

    async def _handle(self, run: Run) -> KvHandle | None:
        """Have the engine prefill what it has in its cache, prompt and tokens so far: nearly nothing is computed."""
        request = msgspec.structs.replace(
            self.request,
            request_id=RequestId(f"{self.request.request_id}-leave"),
            token_ids=self.request.token_ids + self._token_ids,
            prefill_only=True,
            kv=None,
            num_resumed=0,
            reused_tokens=0,
            moves_away=True,
            priority=self.request.priority - 1,  # the stream stands still
            traceparent=None,
        )
        outputs: list[EngineOutput] = []
        try:
            async with asyncio.timeout(_HANDLE_TIMEOUT_S):
                await run(request, outputs.append)
        except Exception as err:  # noqa: BLE001  whatever it is, the request can be computed elsewhere
            log.warning("%s leaves without its KV: %s", self.request.request_id, str(err) or "no handle in time")
            return None
        if not outputs or outputs[-1].kv is None:
            why = outputs[-1].error if outputs else None
            log.warning("%s leaves without its KV: %s", self.request.request_id, why or "the engine gave no handle")
            return None
        return outputs[-1].kv
