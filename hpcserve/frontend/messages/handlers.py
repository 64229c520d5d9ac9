"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API on top of what serves chat completions."""

from __future__ import annotations

import msgspec
from aiohttp import web

from hpcserve.errors import Unsupported
from hpcserve.frontend.access.terms import terms_of
from hpcserve.frontend.admission import abilities, admit
from hpcserve.frontend.body import read_object
from hpcserve.frontend.chat.handlers import chat_job
from hpcserve.frontend.collecting import collect_job
from hpcserve.frontend.context import FRONTEND, RECORD, Frontend
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.messages.conversion import chat_body_of
from hpcserve.frontend.messages.events import MessageEvents
from hpcserve.frontend.messages.message import message_of
from hpcserve.frontend.messages.replies import TokenCount
from hpcserve.frontend.messages.schemas import MessagesBody
from hpcserve.frontend.messages.validation import parse_count_tokens, parse_messages
from hpcserve.frontend.prompts.conversation import conversation_of
from hpcserve.frontend.streaming import stream_job
from hpcserve.frontend.validation import check_chat


async def create_message(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, streamed or not."""
    frontend = request.app[FRONTEND]
    body = parse_messages(await read_object(request))
    chat = chat_body_of(body)
    terms = terms_of(request, chat)
    admit(frontend, body.model)
    _check_abilities(frontend, body)
    job = await chat_job(frontend, chat, terms)
    if body.stream:
        return await stream_job(request, job, MessageEvents(job, request[RECORD].request_id))
    choices, usage = await collect_job(request, job)
    return json_response(msgspec.json.encode(message_of(job, choices[0], usage)))


async def count_tokens(request: web.Request) -> web.Response:
    """Return how many tokens a conversation would be sent to an engine with, however long it is."""
    frontend = request.app[FRONTEND]
    body = parse_count_tokens(await read_object(request))
    chat = chat_body_of(body)
    request[RECORD].tenant.check_model(body.model)
    check_chat(chat)
    admit(frontend, body.model)
    token_ids = await frontend.tokenizer.encode_chat(conversation_of(chat))
    return json_response(msgspec.json.encode(TokenCount(len(token_ids))))


def _check_abilities(frontend: Frontend, body: MessagesBody) -> None:
    """Raise `Unsupported`, by the names that the fields have here, for what the engines cannot do."""
    able = abilities(frontend)
    if body.thinking is not None and body.thinking.type == "enabled" and "reasoning" not in able:
        message = (
            "thinking is not supported: this deployment has no reasoning parser; set model.reasoning_parser to the one"
            " of the model's family, or leave thinking out"
        )
        raise Unsupported(message, param="thinking")
    if body.output_config is not None and body.output_config.format is not None and "structured_output" not in able:
        message = (
            "output_config.format is not supported: the engines of this deployment generate no structured output; leave"
            " it out"
        )
        raise Unsupported(message, param="output_config.format")
