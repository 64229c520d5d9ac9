"""The first request of an engine: a worker is READY after it has answered a real one-token generation."""

from __future__ import annotations

import asyncio

from hpcserve.engine.protocol import AsyncEngine
from hpcserve.errors import EngineError
from hpcserve.types import EngineInfo, EngineRequest, RequestId, Sampling

_TIMEOUT_S = 120.0
_NUM_TOKENS = 8


async def warm_up(engine: AsyncEngine, info: EngineInfo) -> None:
    """Generate, or embed, once. Raises `EngineError` if that fails and `TimeoutError` after two minutes."""
    request = EngineRequest(
        request_id=RequestId("warm-up"),
        token_ids=[1] * min(_NUM_TOKENS, info.max_model_len - 1),
        sampling=Sampling(max_tokens=1, temperature=0.0, ignore_eos=True),
        embeds="generate" not in info.can,
    )
    async with asyncio.timeout(_TIMEOUT_S):
        async for output in engine.generate(request):
            if output.error is not None:
                raise EngineError(f"the first request failed: {output.error}")
