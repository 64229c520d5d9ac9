"""POST /v1/embeddings: texts in, vectors out. Only where the engines embed; these then generate nothing."""

from __future__ import annotations

import base64
import sys
import time
from array import array
from typing import Any

import msgspec
from aiohttp import web

from hpcserve.errors import BadRequest, ContextTooLong, EngineError
from hpcserve.frontend.access.terms import Terms, terms_of
from hpcserve.frontend.admission import admit
from hpcserve.frontend.body import read_object
from hpcserve.frontend.collecting import Collected, collect_job
from hpcserve.frontend.context import FRONTEND, Frontend
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.generation import Job
from hpcserve.frontend.replies import PromptTokensDetails, Usage
from hpcserve.frontend.replies.embeddings import Embedding, Embeddings, EmbeddingUsage
from hpcserve.frontend.sampling import check_prompt
from hpcserve.frontend.schemas.embeddings import EMBEDDINGS, EmbeddingsBody
from hpcserve.frontend.unsupported import strip_unsupported
from hpcserve.frontend.validation import validate
from hpcserve.types import EngineRequest, RequestId, Sampling

_MAX_INPUTS = 2048  # OpenAI's
_NOTHING = Sampling(max_tokens=1)  # nothing is sampled


async def create_embeddings(request: web.Request) -> web.Response:
    """Embed one or more inputs."""
    body = parse_embeddings(await read_object(request))
    job = await embeddings_job(request.app[FRONTEND], body, terms_of(request, body))
    collected, usage = await collect_job(request, job)
    return json_response(msgspec.json.encode(embeddings_reply(job, body, collected, usage)))


def parse_embeddings(raw: dict[str, Any]) -> EmbeddingsBody:
    """Validate the body of a request for embeddings. Raises `BadRequest`."""
    return validate(EmbeddingsBody, strip_unsupported(raw, EMBEDDINGS))


async def embeddings_job(frontend: Frontend, body: EmbeddingsBody, terms: Terms) -> Job:
    """Return what the engines are asked for. Raises `BadRequest` for what cannot be served."""
    context = admit(frontend, body.model, needs="embed")
    inputs: list[str] | list[list[int]] = body.input
    if len(inputs) > _MAX_INPUTS:
        raise BadRequest(f"{len(inputs)} inputs are over {_MAX_INPUTS}; send fewer at once", param="input")
    limit = _limit(body, context)
    request_id = f"embd-{terms.own_id}"
    requests = []
    for index in range(len(inputs)):
        token_ids = await _token_ids(frontend, body, inputs[index], limit)
        _check(token_ids, index, context, frontend.tokenizer.vocab_size)
        requests.append(
            EngineRequest(
                request_id=RequestId(f"{request_id}-{index}"),
                token_ids=token_ids,
                sampling=_NOTHING,
                priority=terms.priority,
                cache_salt=terms.cache_salt,
                embeds=True,
            )
        )
    return Job(
        request_id=request_id,
        created=int(time.time()),
        model=body.model,
        requests=requests,
        num_choices=1,
        caller=terms.caller,
    )


def _limit(body: EmbeddingsBody, context: int) -> int | None:
    """Return how many tokens of an input are kept; None for all."""
    kept = body.truncate_prompt_tokens
    if kept is None or 0 < kept <= context:
        return kept
    if kept == -1:
        return context
    message = f"truncate_prompt_tokens must be -1 or from 1 to {context}, got {kept}"
    raise BadRequest(message, param="truncate_prompt_tokens")


async def _token_ids(frontend: Frontend, body: EmbeddingsBody, given: str | list[int], limit: int | None) -> list[int]:
    side = body.truncation_side
    if isinstance(given, str):
        return await frontend.tokenizer.encode_text(
            given, add_special_tokens=body.add_special_tokens, limit=limit, cut=side
        )
    if limit is None or len(given) <= limit:
        return given
    return given[:limit] if side == "right" else given[-limit:]


def _check(token_ids: list[int], index: int, context: int, vocab_size: int) -> None:
    check_prompt(token_ids, vocab_size, param="input")
    if len(token_ids) > context:
        raise ContextTooLong(
            f"the model's context is {context} tokens, and input {index} has {len(token_ids)}; shorten it, or send"
            " truncate_prompt_tokens: -1",
            param="input",
        )


def embeddings_reply(job: Job, body: EmbeddingsBody, collected: list[Collected], usage: Usage) -> Embeddings:
    """Return the answer with all its vectors. Raises `EngineError` where the engine gave none."""
    encode = _base64 if body.encoding_format == "base64" else _floats
    cached = usage.prompt_tokens_details
    return Embeddings(
        id=job.request_id,
        object="list",
        created=job.created,
        model=job.model,
        data=[Embedding(index, "embedding", encode(_vector(each, index))) for index, each in enumerate(collected)],
        usage=EmbeddingUsage(
            prompt_tokens=usage.prompt_tokens,
            total_tokens=usage.prompt_tokens,
            completion_tokens=0,
            prompt_tokens_details=cached if isinstance(cached, PromptTokensDetails) else PromptTokensDetails(0),
        ),
    )


def _vector(collected: Collected, index: int) -> bytes:
    if not collected.embedding:
        raise EngineError(f"the engine gave no embedding for input {index}")
    return collected.embedding


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode("ascii")


def _floats(vector: bytes) -> list[float]:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tolist()
