"""POST /v1/completions: prompts in, their continuations out. Fields and their order are those of vLLM's server."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from hpcserve.errors import BadRequest
from hpcserve.frontend.access.terms import Terms, terms_of
from hpcserve.frontend.admission import admit
from hpcserve.frontend.body import read_object
from hpcserve.frontend.collecting import Collected, collect_job
from hpcserve.frontend.completions.chunks import CompletionChunks
from hpcserve.frontend.context import FRONTEND, Frontend
from hpcserve.frontend.demands import check_structure
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.generation import Job
from hpcserve.frontend.logprobs import completion_logprobs
from hpcserve.frontend.replies import SYSTEM_FINGERPRINT, Completion, CompletionChoice, Usage, whole_usage
from hpcserve.frontend.sampling import check_prompt, engine_requests, output_room, prompt_limit, sampling_of, truncated
from hpcserve.frontend.schemas import CompletionBody
from hpcserve.frontend.streaming import stream_job
from hpcserve.frontend.validation import parse_completion
from hpcserve.types import EngineRequest, Sampling

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_MAX_SEQUENCES = 2048


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Handle one request for completions of one or more prompts, streamed or not."""
    frontend = request.app[FRONTEND]
    body = parse_completion(await read_object(request))
    job = await completion_job(frontend, body, terms_of(request, body))
    if body.stream:
        return await stream_job(request, job, CompletionChunks(job, body, _echoes(frontend, body)))
    choices, usage = await collect_job(request, job)
    return json_response(msgspec.json.encode(completion_reply(frontend, job, body, choices, usage)))


async def completion_job(frontend: Frontend, body: CompletionBody, terms: Terms) -> Job:
    """Return what the engines are asked for. Raises `BadRequest` for what cannot be served."""
    context = admit(frontend, body.model, needs="generate")
    check_structure(frontend, body)
    prompts: list[str] | list[list[int]] = body.prompt
    if len(prompts) * body.n > _MAX_SEQUENCES:
        message = f"{len(prompts)} prompts with n = {body.n} are over {_MAX_SEQUENCES} sequences; send fewer at once"
        raise BadRequest(message, param="prompt")
    request_id = f"cmpl-{terms.own_id}"
    requests: list[EngineRequest] = []
    limit = prompt_limit(body, body.max_tokens, context)
    for prompt in prompts:
        token_ids = await _token_ids(frontend, body, prompt, limit)
        sampling = _sampling(frontend, body, context, token_ids)
        requests += engine_requests(terms, body.n, request_id, len(requests), token_ids, sampling)
    return Job(
        request_id=request_id,
        created=int(time.time()),
        model=body.model,
        requests=requests,
        num_choices=body.n,
        caller=terms.caller,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


async def _token_ids(frontend: Frontend, body: CompletionBody, prompt: str | list[int], limit: int | None) -> list[int]:
    if not isinstance(prompt, str):
        return truncated(prompt, body, limit)
    keeps_special = limit if body.truncation_side is None else None
    token_ids = await frontend.tokenizer.encode_text(
        prompt, add_special_tokens=body.add_special_tokens, limit=keeps_special
    )
    return truncated(token_ids, body, limit)


def _sampling(frontend: Frontend, body: CompletionBody, context: int, token_ids: list[int]) -> Sampling:
    check_prompt(token_ids, frontend.tokenizer.vocab_size)
    room = output_room(len(token_ids), body.max_tokens, context)
    max_tokens = body.max_tokens or min(_DEFAULT_MAX_TOKENS, room)
    return sampling_of(body, frontend.tokenizer, max_tokens=max_tokens, logprobs=body.logprobs)


def _echoes(frontend: Frontend, body: CompletionBody) -> list[str]:
    """Return what each choice begins with: its prompt when it is to be echoed."""
    if not body.echo or body.return_token_ids:  # vLLM gives the prompt's ids instead of its text
        return [""] * (len(body.prompt) * body.n)
    texts = [each if isinstance(each, str) else frontend.tokenizer.decode(each) for each in body.prompt]
    return [text for text in texts for _ in range(body.n)]


def completion_reply(
    frontend: Frontend, job: Job, body: CompletionBody, choices: list[Collected], usage: Usage
) -> Completion:
    """Return the answer with all its choices."""
    echoes = _echoes(frontend, body)
    return Completion(
        id=job.request_id,
        object="text_completion",
        created=job.created,
        model=job.model,
        choices=[
            _choice(index, each, body, echoes[index], job.requests[index].token_ids)
            for index, each in enumerate(choices)
        ],
        service_tier=None,
        system_fingerprint=SYSTEM_FINGERPRINT,
        usage=whole_usage(usage),
    )


def _choice(
    index: int, collected: Collected, body: CompletionBody, echo: str, prompt_token_ids: list[int]
) -> CompletionChoice:
    logprobs = None
    if body.logprobs is not None:
        logprobs = completion_logprobs(collected.logprobs, body.logprobs, as_ids=body.return_tokens_as_token_ids)
    return CompletionChoice(
        index=index,
        text=echo + collected.text,
        logprobs=logprobs,
        finish_reason=collected.finish_reason,
        stop_reason=collected.stop_reason,
        token_ids=collected.token_ids if body.return_token_ids else None,
        prompt_logprobs=None,
        prompt_token_ids=prompt_token_ids if body.return_token_ids else None,
    )
