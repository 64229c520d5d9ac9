"""A frontend without HTTP, for a batch driver: configuration, tokenizer, the newest status, and outputs that are there.

It makes engine requests and formats answers with the frontend's own code, and counts usage where frontends do. Who
runs the requests in between is the driver's matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from hpcserve.config.models import Config
from hpcserve.dispatch.dispatcher import unknown_status
from hpcserve.dispatch.head import HeadLink
from hpcserve.dispatch.progress import failure
from hpcserve.errors import DeploymentError, WorkerLost
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.access.tenants import ANYBODY, Tenant
from hpcserve.frontend.access.usage_recorder import UsageRecorder
from hpcserve.frontend.backend import OnOutput, context_length, known_workers
from hpcserve.frontend.context import Frontend
from hpcserve.frontend.exposure import auth_required
from hpcserve.frontend.offline import Prepared, answer, prepare
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.observability.metrics import ServiceMetrics
from hpcserve.state import StateDir
from hpcserve.types import Caller, EngineOutput, EngineRequest, RequestId, Status
from hpcserve.usage import UsageFile

_HEAD_TIMEOUT_S = 10.0


class _Outputs:
    """A `Backend` whose requests have run already."""

    def __init__(self, config: Config, head: HeadLink) -> None:
        self._head = head
        self._unknown = unknown_status(config)
        self._outputs: dict[RequestId, EngineOutput] = {}

    def put(self, outputs: Iterable[EngineOutput]) -> None:
        """Take what is asked for next."""
        self._outputs = {each.request_id: each for each in outputs}

    async def run(self, request: EngineRequest, on_output: OnOutput, caller: Caller) -> None:
        output = self._outputs[request.request_id]
        if output.error is not None:
            raise failure(output.error, is_refusal=output.is_refusal)
        if output.finish_reason == "abort":
            raise WorkerLost("the engine aborted the request")
        on_output(output)

    def status(self) -> Status:
        return self._head.status or self._unknown


class OfflineFrontend:
    """An async context manager. Requests are the operator's, as those with the deployment's own key."""

    def __init__(self, state: StateDir, config: Config) -> None:
        self._state = state
        self._config = config
        self._stack = AsyncExitStack()
        self._head = HeadLink(state)
        self._backend = _Outputs(config, self._head)
        self._tenant = ANYBODY
        self._frontend: Frontend | None = None

    async def __aenter__(self) -> Self:
        """Raises `DeploymentError` if the head cannot be reached, `ConfigError` if the model's files cannot be read."""
        async with AsyncExitStack() as stack:
            metrics = ServiceMetrics(self._backend.status)
            tokenizer = Tokenizer.load(self._config.model)
            stack.callback(tokenizer.close)
            self._tenant = await _operator(self._config, self._state)
            await stack.enter_async_context(UsageRecorder(metrics.tenants, UsageFile(self._state)))
            listening = asyncio.create_task(self._head.run(), name="listen to the head")
            stack.push_async_callback(_end, listening)
            try:
                await asyncio.wait_for(self._head.heard.wait(), _HEAD_TIMEOUT_S)
            except TimeoutError as err:
                raise DeploymentError(f"the head of {self._state.name!r} does not answer") from err
            self._frontend = Frontend(self._config, self._backend, tokenizer, metrics)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def status(self) -> Status:
        """Return the newest status."""
        return self._backend.status()

    def models(self) -> dict[str, int | None]:
        """Return the served model with its context in tokens, where a worker has told it."""
        status = self.status()
        return {self._config.served_name: context_length(status) if known_workers(status) else None}

    async def prepare(self, url: str, body: dict[str, Any]) -> Prepared:
        """Return what a request asks the engines for. Raises as its endpoint would answer."""
        parts, tenant = self._parts, self._tenant
        if tenant.name:
            parts.metrics.tenants[tenant.name].count_request(is_rate_limited=False, now=time.time())
        return await prepare(parts, tenant, url, body)

    async def answer(self, prepared: Prepared, outputs: Iterable[EngineOutput]) -> bytes:
        """Return the body of the answer that these outputs make.

        Raises an `HpcserveError` if the engine failed, and `WorkerLost` if it gave up.
        """
        self._backend.put(outputs)
        return await answer(self._parts, prepared)

    @property
    def _parts(self) -> Frontend:
        if self._frontend is None:
            raise RuntimeError("it is not entered")
        return self._frontend


async def _operator(config: Config, state: StateDir) -> Tenant:
    """Return whose requests these are, as a frontend sees the deployment's own key."""
    if not auth_required(config, config.cluster.kind, config.frontend.host):
        return ANYBODY
    key = state.read_key()
    if not key:
        return ANYBODY
    secret = None if config.security.share_prefixes else state.read_salt_secret()
    return await KeyRing(key, secret).find(key)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
