"""POST /v1/responses: OpenAI's Responses API on top of what serves chat completions."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from hpcserve.errors import BadRequest
from hpcserve.frontend.access.terms import Terms, terms_of
from hpcserve.frontend.body import read_object
from hpcserve.frontend.chat.handlers import chat_job
from hpcserve.frontend.collecting import collect_job
from hpcserve.frontend.context import FRONTEND, Frontend
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.generation import Job
from hpcserve.frontend.responses.answer import whole_response
from hpcserve.frontend.responses.conversion import chat_body_of, in_words_of_responses
from hpcserve.frontend.responses.events import ResponseEvents
from hpcserve.frontend.responses.schemas import ResponsesBody
from hpcserve.frontend.responses.truncation import shortened
from hpcserve.frontend.responses.validation import parse_responses
from hpcserve.frontend.schemas import ChatBody
from hpcserve.frontend.streaming import stream_job


async def create_response(request: web.Request) -> web.StreamResponse:
    """Answer some input, streamed or not."""
    body = parse_responses(await read_object(request))
    job = await response_job(request.app[FRONTEND], body, lambda chat: terms_of(request, chat))
    if body.stream:
        return await stream_job(request, job, ResponseEvents(job, body))
    collected, usage = await collect_job(request, job)
    return json_response(msgspec.json.encode(whole_response(job, body, collected[0], usage)))


async def response_job(frontend: Frontend, body: ResponsesBody, terms_for: Callable[[ChatBody], Terms]) -> Job:
    """Return what the engines are asked for. Raises `BadRequest` for what cannot be served."""
    chat = chat_body_of(body)
    terms = terms_for(chat)
    try:
        if body.truncation == "auto":
            chat = await shortened(frontend, chat)
        return await chat_job(frontend, chat, terms)
    except BadRequest as err:
        raise in_words_of_responses(err) from err
