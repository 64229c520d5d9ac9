"""POST /v1/chat/completions: messages in, message out. Fields and their order are those of vLLM's server."""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec
from aiohttp import web

from hpcserve.errors import HpcserveError
from hpcserve.frontend.admission import admit
from hpcserve.frontend.body import read_object
from hpcserve.frontend.collecting import Collected, collect_job
from hpcserve.frontend.context import FRONTEND, Frontend
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.generation import Job
from hpcserve.frontend.logprobs import chat_logprobs
from hpcserve.frontend.replies import ChatChoice, ChatCompletion, ChatReplyMessage, Usage
from hpcserve.frontend.sampling import check_prompt, engine_requests, output_room, sampling_of
from hpcserve.frontend.schemas import ChatBody
from hpcserve.frontend.streaming import DONE, event, failure_event, stream_job
from hpcserve.frontend.terms import Terms, terms_of
from hpcserve.frontend.validation import parse_chat
from hpcserve.types import EngineOutput

_encode = msgspec.json.encode


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Handle one chat completion, streamed or not."""
    frontend = request.app[FRONTEND]
    body = parse_chat(await read_object(request))
    job = await chat_job(frontend, body, terms_of(request, body))
    if body.stream:
        return await stream_job(request, job, ChatChunks(job, body))
    choices, usage = await collect_job(request, job)
    return json_response(_encode(_response(job, body, choices, usage)))


async def chat_job(frontend: Frontend, body: ChatBody, terms: Terms) -> Job:
    """Render the conversation and return what the engines are asked for. Other APIs for conversations use it, too."""
    context = admit(frontend, body.model)
    token_ids = await frontend.tokenizer.encode_chat(
        [message.for_template() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt is not False,
        extra=body.chat_template_kwargs,
    )
    check_prompt(token_ids, frontend.tokenizer.vocab_size)
    max_tokens = output_room(len(token_ids), body.max_completion_tokens or body.max_tokens, context)
    logprobs = body.top_logprobs if body.logprobs else None
    sampling = sampling_of(body, frontend.tokenizer, max_tokens=max_tokens, logprobs=logprobs)
    request_id = f"chatcmpl-{secrets.token_hex(16)}"
    return Job(
        request_id=request_id,
        created=int(time.time()),
        model=body.model,
        requests=engine_requests(terms, body.n, request_id, 0, token_ids, sampling),
        num_choices=body.n,
        caller=terms.caller,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


class ChatChunks:
    """The events of one streamed chat completion."""

    def __init__(self, job: Job, body: ChatBody) -> None:
        self._job = job
        self._num_top = body.top_logprobs if body.logprobs else None
        self._head = event(self._envelope())[: -len(b"]}\n\n")]

    def preamble(self) -> bytes:
        """Return the chunks that name the role, one a choice."""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        tail = b',"prompt_token_ids":null,"prompt_text":null}\n\n'
        return b"".join(self._head + b'{"index":%d,' % index + delta + tail for index in range(len(self._job.requests)))

    def text_chunk(self, index: int) -> tuple[bytes, bytes]:
        """Return the parts around the text of a delta."""
        head = self._head + b'{"index":%d,"delta":{"content":' % index
        return head, b'},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'

    def chunk(self, index: int, output: EngineOutput) -> bytes:
        """Return the event of a delta with logprobs or a finish reason."""
        choice: dict[str, Any] = {
            "index": index,
            "delta": {"content": output.text},
            "logprobs": None if self._num_top is None else chat_logprobs(output.logprobs, self._num_top),
            "finish_reason": output.finish_reason,
        }
        if output.finish_reason is not None:
            choice["stop_reason"] = output.stop_reason
        choice["token_ids"] = None
        return self._head + _encode(choice) + b"]}\n\n"

    def ending(self, usage: Usage) -> bytes:
        """Return the event with the usage and no choices, where it was asked for, and the last one."""
        return (event({**self._envelope(), "usage": usage}) if self._job.include_usage else b"") + DONE

    def failure(self, error: HpcserveError) -> bytes:
        """Return OpenAI's event for an error."""
        return failure_event(error)

    def _envelope(self) -> dict[str, object]:
        return {
            "id": self._job.request_id,
            "object": "chat.completion.chunk",
            "created": self._job.created,
            "model": self._job.model,
            "choices": [],
        }


def _response(job: Job, body: ChatBody, choices: list[Collected], usage: Usage) -> ChatCompletion:
    return ChatCompletion(
        id=job.request_id,
        object="chat.completion",
        created=job.created,
        model=job.model,
        choices=[_choice(index, each, body) for index, each in enumerate(choices)],
        service_tier=None,
        system_fingerprint=None,
        usage=usage,
        prompt_logprobs=None,
        prompt_token_ids=None,
        prompt_text=None,
        kv_transfer_params=None,
    )


def _choice(index: int, collected: Collected, body: ChatBody) -> ChatChoice:
    return ChatChoice(
        index=index,
        message=ChatReplyMessage(
            role="assistant",
            content=collected.text,
            refusal=None,
            annotations=None,
            audio=None,
            function_call=None,
            reasoning=None,
        ),
        logprobs=chat_logprobs(collected.logprobs, body.top_logprobs) if body.logprobs else None,
        finish_reason=collected.finish_reason,
        stop_reason=collected.stop_reason,
        token_ids=None,
    )
