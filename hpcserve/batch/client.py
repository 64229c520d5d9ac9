"""Asks a deployment's endpoint, and asks again where that may help. Knows neither files nor how many there are.

A request is at fault for what comes back to it alone: a 4xx fails it at once, a 5xx or a broken connection after some
attempts. The service is at fault where it cannot be reached or has no room (429, 503): requests wait as long as it
says, and when nothing at all has been answered for long enough, asking ends with an error, and none of them has failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from hpcserve.batch import silence
from hpcserve.batch.connecting import Endpoint, connect
from hpcserve.batch.lines import Item
from hpcserve.batch.silence import Silence
from hpcserve.batch.unit import Reply, Take, Unit
from hpcserve.errors import DeploymentError

__all__ = ["Client", "Endpoint", "Patience", "Reply"]

_MAX_SHOWN = 300
_MAX_RETRY_AFTER_S = 120.0
_BUSY = (408, 429, 503)
_ID_HEADER = "x-request-id"


@dataclass(frozen=True)
class Patience:
    """How long to go on asking."""

    attempts: int = 5  # of one request, where it may be the cause
    waits: int = 200  # of one request, for room
    silence_s: float = 600.0  # without an answer to anything
    request_s: float = 3600.0  # for one answer


class _Fault(Enum):
    """Whose fault it is that there is no good answer."""

    NONE = auto()
    REQUEST = auto()
    SERVICE = auto()


@dataclass(frozen=True, slots=True)
class _Try:
    fault: _Fault
    reason: str
    status: int | None = None
    request_id: str | None = None
    body: bytes = b""
    retry_after_s: float | None = None


class Client:
    """An endpoint, asked by as many at once as like. A `Service` whose units are single requests."""

    unit_size = 1

    def __init__(self, endpoint: Endpoint, patience: Patience | None = None, *, priority: int = 0) -> None:
        self._endpoint = endpoint
        self._patience = patience or Patience()
        self._priority = priority
        self._silence = Silence(endpoint.name, self._patience.silence_s)
        self._http = connect(endpoint, self._patience.request_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._http.close()

    async def models(self) -> dict[str, int | None]:
        """Return the served models with their context in tokens. Raises `DeploymentError`."""
        try:
            async with self._http.get(self._endpoint.url_of("/v1/models")) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise DeploymentError(f"cannot reach {self._endpoint.name}: {_named(err)}") from err
        if response.status != 200:
            raise DeploymentError(f"{self._endpoint.name} answers {response.status}: {_told(body)}")
        try:
            return {each["id"]: each.get("max_model_len") for each in msgspec.json.decode(body)["data"]}
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as err:
            raise DeploymentError(f"{self._endpoint.name} is no OpenAI-compatible endpoint") from err

    async def run(self, unit: Unit, take: Take) -> None:
        """Ask for one after the other; see `Service`."""
        for item in unit.items:
            await take(item, await self.ask(item))

    async def ask(self, item: Item) -> Reply:
        """Return the answer, or the last failure after all attempts. Safe to cancel.

        Raises `DeploymentError` where the service is at fault for longer than `Patience` says, or refuses the key.
        """
        url = self._endpoint.url_of(item.url)
        data = msgspec.json.encode({"priority": self._priority, **item.body} if self._priority else item.body)
        reasons: list[str] = []
        attempts = waits = 0
        while True:
            tried = await self._try(url, data)
            if tried.fault is _Fault.NONE:
                self._silence.end()
                return Reply(tried.status, tried.request_id, tried.body, len(reasons) + 1, tuple(reasons))
            reasons.append(tried.reason)
            if tried.fault is _Fault.SERVICE:
                waits += 1
                self._silence.check(tried.reason)
            else:
                attempts += 1
            if attempts >= self._patience.attempts or waits >= self._patience.waits:
                return Reply(tried.status, tried.request_id, tried.body, attempts + waits, tuple(reasons))
            await asyncio.sleep(_delay_s(item.number, attempts + waits, tried.retry_after_s))

    async def _try(self, url: str, data: bytes) -> _Try:
        try:
            async with self._http.post(url, data=data) as response:
                body = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as err:
            return _Try(_Fault.SERVICE, f"cannot connect: {_named(err)}")
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            return _Try(_Fault.REQUEST, f"no answer: {_named(err)}")
        return self._judge(response, body)

    def _judge(self, response: aiohttp.ClientResponse, body: bytes) -> _Try:
        status, request_id = response.status, response.headers.get(_ID_HEADER)
        if status in (401, 403) or (status == 404 and b'"model_not_found"' in body):
            raise DeploymentError(f"{self._endpoint.name} answers {status}: {_told(body)}")
        if status in _BUSY:
            after_s = _retry_after_s(response.headers.get("Retry-After"))
            return _Try(_Fault.SERVICE, f"{status}: {_told(body)}", status, request_id, body, after_s)
        if status == 200:
            return _Try(_Fault.NONE, "", status, request_id, body)
        fault = _Fault.REQUEST if status >= 500 else _Fault.NONE
        return _Try(fault, f"{status}: {_told(body)}", status, request_id, body)


def _delay_s(number: int, failures: int, retry_after_s: float | None) -> float:
    """Return how long to wait: at least what the service says, doubled each time, apart from the others."""
    if retry_after_s is None:
        return silence.delay_s(number, failures)
    return min(retry_after_s, _MAX_RETRY_AFTER_S) + silence.FIRST_DELAY_S * silence.spread(number)


def _retry_after_s(header: str | None) -> float | None:
    return float(header) if header is not None and header.isascii() and header.isdecimal() else None


def _named(err: BaseException) -> str:
    return f"{type(err).__name__}: {err}"[:_MAX_SHOWN].rstrip(": ")


def _told(body: bytes) -> str:
    """Return the message of an error's body, as short as a line."""
    try:
        value: Any = msgspec.json.decode(body)
        message = str(value["error"]["message"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        message = body.decode(errors="replace")
    return " ".join(message.split())[:_MAX_SHOWN]
