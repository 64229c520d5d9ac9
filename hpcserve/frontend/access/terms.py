"""What holds for every sequence of a request because of who sent it: caller, priority and cache salt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from hpcserve.errors import BadRequest
from hpcserve.frontend.access.tenants import Tenant
from hpcserve.frontend.context import RECORD
from hpcserve.frontend.schemas import session_id
from hpcserve.types import Caller

_SESSION_HEADER = "X-Session-ID"


class AsksForTerms(Protocol):
    """What a body says about them."""

    model: str
    prompt_cache_key: str | None
    priority: int | None
    cache_salt: str | None


@dataclass(frozen=True)
class Terms:
    """Of one request; `priority` and `cache_salt` are what engines get."""

    own_id: str  # what ids of jobs end in, so that they are found together with the request's
    caller: Caller
    priority: int
    cache_salt: str | None


def terms_of(request: web.Request, body: AsksForTerms) -> Terms:
    """Return the terms of a request whose key was checked.

    Raises `ModelNotFound` for a model that the key is not good for, `BadRequest` for a wrong session header.
    """
    record = request[RECORD]
    return tenant_terms(record.tenant, record.own_id, body, _header_session(request))


def tenant_terms(tenant: Tenant, own_id: str, body: AsksForTerms, session: str | None = None) -> Terms:
    """Return the terms of a request of `tenant`. Raises `ModelNotFound` for a model that its key is not good for."""
    tenant.check_model(body.model)
    return Terms(
        own_id=own_id,
        caller=Caller(tenant=tenant.name, session=session or body.prompt_cache_key),
        priority=tenant.priority_of(body.priority),
        cache_salt=tenant.salt_of(body.cache_salt),
    )


def _header_session(request: web.Request) -> str | None:
    given = request.headers.get(_SESSION_HEADER)
    try:
        return None if given is None else session_id(given)
    except ValueError as err:
        raise BadRequest(f"the header {_SESSION_HEADER} {err}", param=_SESSION_HEADER) from err
