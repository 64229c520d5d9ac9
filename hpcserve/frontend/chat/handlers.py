"""POST /v1/chat/completions: messages in, message out. Fields and their order are those of vLLM's server."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from hpcserve.frontend.access.terms import Terms, terms_of
from hpcserve.frontend.admission import admit
from hpcserve.frontend.body import read_object
from hpcserve.frontend.chat.chunks import ChatChunks
from hpcserve.frontend.chat.reply import chat_reply
from hpcserve.frontend.collecting import collect_job
from hpcserve.frontend.context import FRONTEND, Frontend
from hpcserve.frontend.demands import chat_parsing, check_structure
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.generation import Job
from hpcserve.frontend.prompts.conversation import conversation_of
from hpcserve.frontend.sampling import check_prompt, engine_requests, output_room, prompt_limit, sampling_of, truncated
from hpcserve.frontend.schemas import ChatBody
from hpcserve.frontend.streaming import stream_job
from hpcserve.frontend.validation import check_chat, parse_chat


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Handle one chat completion, streamed or not."""
    frontend = request.app[FRONTEND]
    body = parse_chat(await read_object(request))
    job = await chat_job(frontend, body, terms_of(request, body))
    if body.stream:
        return await stream_job(request, job, ChatChunks(job, body))
    choices, usage = await collect_job(request, job)
    return json_response(msgspec.json.encode(chat_reply(job, body, choices, usage)))


async def chat_job(frontend: Frontend, body: ChatBody, terms: Terms) -> Job:
    """Render the conversation and return what the engines are asked for. Other APIs for conversations use it, too.

    Raises `BadRequest` for fields that contradict each other, or that ask for what the engines cannot do.
    """
    check_chat(body)
    context = admit(frontend, body.model, needs="generate")
    check_structure(frontend, body)
    parsing = chat_parsing(frontend, body)
    wanted = body.max_completion_tokens or body.max_tokens
    limit = prompt_limit(body, wanted, context)
    token_ids = truncated(await frontend.tokenizer.encode_chat(conversation_of(body)), body, limit)
    check_prompt(token_ids, frontend.tokenizer.vocab_size)
    max_tokens = output_room(len(token_ids), wanted, context)
    logprobs = body.top_logprobs if body.logprobs else None
    sampling = sampling_of(body, frontend.tokenizer, max_tokens=max_tokens, logprobs=logprobs)
    request_id = f"chatcmpl-{terms.own_id}"
    return Job(
        request_id=request_id,
        created=int(time.time()),
        model=body.model,
        requests=engine_requests(terms, body.n, request_id, 0, token_ids, sampling, parsing),
        num_choices=body.n,
        caller=terms.caller,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )
