"""POST /v1/completions: prompts in, their continuations out. Fields and their order are those of vLLM's server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from hpcserve.errors import BadRequest, HpcserveError
from hpcserve.frontend.admission import admit
from hpcserve.frontend.body import read_object
from hpcserve.frontend.collecting import Collected, collect_job
from hpcserve.frontend.context import FRONTEND, Frontend
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.generation import Job
from hpcserve.frontend.logprobs import completion_logprobs
from hpcserve.frontend.replies import Completion, CompletionChoice, CompletionLogprobs, Usage
from hpcserve.frontend.sampling import check_prompt, engine_requests, output_room, sampling_of
from hpcserve.frontend.schemas import CompletionBody
from hpcserve.frontend.streaming import DONE, event, failure_event, stream_job
from hpcserve.frontend.terms import Terms, terms_of
from hpcserve.frontend.validation import parse_completion
from hpcserve.types import EngineOutput, EngineRequest, Sampling

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_MAX_SEQUENCES = 2048

_encode = msgspec.json.encode


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Handle one request for completions of one or more prompts, streamed or not."""
    frontend = request.app[FRONTEND]
    body = parse_completion(await read_object(request))
    job = await _job(frontend, body, terms_of(request, body))
    echoes = _echoes(frontend, body)
    if body.stream:
        return await stream_job(request, job, CompletionChunks(job, body, echoes))
    choices, usage = await collect_job(request, job)
    return json_response(_encode(_response(job, body, echoes, choices, usage)))


async def _job(frontend: Frontend, body: CompletionBody, terms: Terms) -> Job:
    context = admit(frontend, body.model)
    prompts: list[str] | list[list[int]] = body.prompt
    if len(prompts) * body.n > _MAX_SEQUENCES:
        message = f"{len(prompts)} prompts with n = {body.n} are over {_MAX_SEQUENCES} sequences; send fewer at once"
        raise BadRequest(message, param="prompt")
    request_id = f"cmpl-{secrets.token_hex(16)}"
    requests: list[EngineRequest] = []
    for prompt in prompts:
        token_ids = await frontend.tokenizer.encode_text(prompt) if isinstance(prompt, str) else prompt
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


def _sampling(frontend: Frontend, body: CompletionBody, context: int, token_ids: list[int]) -> Sampling:
    check_prompt(token_ids, frontend.tokenizer.vocab_size)
    room = output_room(len(token_ids), body.max_tokens, context)
    max_tokens = body.max_tokens or min(_DEFAULT_MAX_TOKENS, room)
    return sampling_of(body, frontend.tokenizer, max_tokens=max_tokens, logprobs=body.logprobs)


def _echoes(frontend: Frontend, body: CompletionBody) -> list[str]:
    """Return what each choice begins with: its prompt when it is to be echoed."""
    if not body.echo:
        return [""] * (len(body.prompt) * body.n)
    texts = [each if isinstance(each, str) else frontend.tokenizer.decode(each) for each in body.prompt]
    return [text for text in texts for _ in range(body.n)]


class CompletionChunks:
    """The events of one streamed completion."""

    def __init__(self, job: Job, body: CompletionBody, echoes: Sequence[str]) -> None:
        self._job = job
        self._num_top = body.logprobs
        self._echoes = echoes
        self._offsets = [0] * len(job.requests)  # where the next token with logprobs starts in its text
        self._head = event(self._envelope())[: -len(b"]}\n\n")]

    def preamble(self) -> bytes:
        """Return the chunks with the echoed prompts."""
        chunks = []
        for index, text in enumerate(self._echoes):
            if text:
                head, tail = self.text_chunk(index)
                chunks.append(head + _encode(text) + tail)
        return b"".join(chunks)

    def text_chunk(self, index: int) -> tuple[bytes, bytes]:
        """Return the parts around the text of a delta."""
        reasons = b',"logprobs":null,"finish_reason":null,"stop_reason":null'
        tail = reasons + b',"prompt_token_ids":null,"token_ids":null}]}\n\n'
        return self._head + b'{"index":%d,"text":' % index, tail

    def chunk(self, index: int, output: EngineOutput) -> bytes:
        """Return the event of a delta with logprobs or a finish reason."""
        choice: dict[str, Any] = {
            "index": index,
            "text": output.text,
            "logprobs": self._logprobs(index, output),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
            "prompt_token_ids": None,
            "token_ids": None,
        }
        return self._head + _encode(choice) + b"]}\n\n"

    def ending(self, usage: Usage) -> bytes:
        """Return the event with the usage and no choices, where it was asked for, and the last one."""
        return (event({**self._envelope(), "usage": usage}) if self._job.include_usage else b"") + DONE

    def failure(self, error: HpcserveError) -> bytes:
        """Return OpenAI's event for an error."""
        return failure_event(error)

    def _logprobs(self, index: int, output: EngineOutput) -> CompletionLogprobs | None:
        if self._num_top is None:
            return None
        offset = self._offsets[index]
        self._offsets[index] += sum(len(each.token) for each in output.logprobs)
        return completion_logprobs(output.logprobs, self._num_top, offset)

    def _envelope(self) -> dict[str, object]:
        return {
            "id": self._job.request_id,
            "object": "text_completion",
            "created": self._job.created,
            "model": self._job.model,
            "choices": [],
        }


def _response(job: Job, body: CompletionBody, echoes: list[str], choices: list[Collected], usage: Usage) -> Completion:
    return Completion(
        id=job.request_id,
        object="text_completion",
        created=job.created,
        model=job.model,
        choices=[_choice(index, each, body, echoes[index]) for index, each in enumerate(choices)],
        service_tier=None,
        system_fingerprint=None,
        usage=usage,
        kv_transfer_params=None,
    )


def _choice(index: int, collected: Collected, body: CompletionBody, echo: str) -> CompletionChoice:
    return CompletionChoice(
        index=index,
        text=echo + collected.text,
        logprobs=None if body.logprobs is None else completion_logprobs(collected.logprobs, body.logprobs),
        finish_reason=collected.finish_reason,
        stop_reason=collected.stop_reason,
        token_ids=None,
        prompt_logprobs=None,
        prompt_token_ids=None,
    )
