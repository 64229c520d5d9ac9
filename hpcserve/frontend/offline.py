"""Requests that come without HTTP: the checks, prompts and answers of the endpoints, for other ways to the engines.

`prepare` says what the engines are asked for, `answer` makes the body of what they gave. Nothing is streamed, and no
key is looked at: whoever calls this may use the deployment.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from hpcserve.frontend.access.tenants import Tenant
from hpcserve.frontend.access.terms import AsksForTerms, Terms, tenant_terms
from hpcserve.frontend.chat.handlers import chat_job
from hpcserve.frontend.chat.reply import chat_reply
from hpcserve.frontend.collecting import Collected, collect
from hpcserve.frontend.completions.handlers import completion_job, completion_reply
from hpcserve.frontend.context import Frontend, RequestRecord
from hpcserve.frontend.embeddings import embeddings_job, embeddings_reply, parse_embeddings
from hpcserve.frontend.generation import Job
from hpcserve.frontend.replies import Usage
from hpcserve.frontend.responses.answer import whole_response
from hpcserve.frontend.responses.handlers import response_job
from hpcserve.frontend.responses.validation import parse_responses
from hpcserve.frontend.validation import parse_chat, parse_completion

_Reply = Callable[[list[Collected], Usage], msgspec.Struct]
_TermsFor = Callable[[AsksForTerms], Terms]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request that may go to the engines."""

    record: RequestRecord
    job: Job
    reply: _Reply


async def prepare(frontend: Frontend, tenant: Tenant, url: str, body: dict[str, Any]) -> Prepared:
    """Return what a request for `url`, one of `URLS`, asks the engines for. Raises as its endpoint would answer."""
    own_id = secrets.token_hex(16)
    record = RequestRecord(own_id, own_id, tenant=tenant)
    job, reply = await _PREPARE[url](frontend, body, lambda asked: tenant_terms(tenant, own_id, asked))
    return Prepared(record, job, reply)


async def answer(frontend: Frontend, prepared: Prepared) -> bytes:
    """Run a job on the frontend's backend and return the body of the answer. Raises an `HpcserveError` if it fails."""
    collected, usage = await collect(frontend, prepared.record, prepared.job)
    return msgspec.json.encode(prepared.reply(collected, usage))


async def _chat(frontend: Frontend, raw: dict[str, Any], terms_for: _TermsFor) -> tuple[Job, _Reply]:
    body = parse_chat(raw)
    job = await chat_job(frontend, body, terms_for(body))
    return job, lambda collected, usage: chat_reply(job, body, collected, usage)


async def _completion(frontend: Frontend, raw: dict[str, Any], terms_for: _TermsFor) -> tuple[Job, _Reply]:
    body = parse_completion(raw)
    job = await completion_job(frontend, body, terms_for(body))
    return job, lambda collected, usage: completion_reply(frontend, job, body, collected, usage)


async def _response(frontend: Frontend, raw: dict[str, Any], terms_for: _TermsFor) -> tuple[Job, _Reply]:
    body = parse_responses(raw)
    job = await response_job(frontend, body, terms_for)
    return job, lambda collected, usage: whole_response(job, body, collected[0], usage)


async def _embeddings(frontend: Frontend, raw: dict[str, Any], terms_for: _TermsFor) -> tuple[Job, _Reply]:
    body = parse_embeddings(raw)
    job = await embeddings_job(frontend, body, terms_for(body))
    return job, lambda collected, usage: embeddings_reply(job, body, collected, usage)


_PREPARE: dict[str, Callable[[Frontend, dict[str, Any], _TermsFor], Awaitable[tuple[Job, _Reply]]]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/responses": _response,
    "/v1/embeddings": _embeddings,
}
URLS = tuple(_PREPARE)
