"""A `Service` that has units run on a deployment's workers as Dask tasks, past the frontends.

Bodies, checks and answers are the frontend's own (`offline_frontend.py`), and so are the faults: a request is at fault
for a 4xx at once, and for what its engine dies of, or says, after some attempts. Units that were lost twice are
suspects: they run one at a time, first whole, then request by request, so that only the culprit fails.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hpcserve.batch.client import Patience
from hpcserve.batch.dask_tasks import UnitTasks
from hpcserve.batch.lines import Item
from hpcserve.batch.offline_frontend import OfflineFrontend
from hpcserve.batch.silence import Silence, delay_s
from hpcserve.batch.unit import Reply, Take, Unit
from hpcserve.config.models import Config
from hpcserve.errors import (
    BadRequest,
    ConnectionLost,
    DeploymentError,
    EngineError,
    HpcserveError,
    ModelNotFound,
    Unavailable,
    WorkerLost,
)
from hpcserve.frontend.backend import why_not_ready
from hpcserve.frontend.errors import error_body
from hpcserve.frontend.generation import as_hpcserve_error
from hpcserve.frontend.offline import Prepared
from hpcserve.state import StateDir
from hpcserve.types import EngineOutput, EngineRequest

log = logging.getLogger(__name__)

_NAMES = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/responses": "response",
    "/v1/embeddings": "embedding",
}
_MIXED = "mixed"
_FIRST_GUESS = 256.0  # output tokens of a request, before any is known
_MEMORY = 0.02  # share of the newest answer in the mean


@dataclass(eq=False)
class _Asked:
    """A request that has no answer yet."""

    item: Item
    reasons: list[str] = field(default_factory=list)
    num_failures: int = 0  # that may be its own fault
    is_suspect: bool = False  # its worker died under it
    error: HpcserveError | None = None  # the last

    def fail(self, error: HpcserveError) -> None:
        self.num_failures += 1
        self.error = error
        self.reasons.append(f"{error.http_status}: {error.message}")


class DaskService:
    """An async context manager; see `Service`."""

    def __init__(
        self,
        state: StateDir,
        config: Config,
        patience: Patience | None = None,
        *,
        priority: int = 0,
        unit_size: int = 32,
    ) -> None:
        self.unit_size = unit_size
        self._config = config
        self._patience = patience or Patience()
        self._priority = priority
        self._frontend = OfflineFrontend(state, config)
        self._tasks = UnitTasks(state, config.engine.block_size)
        self._silence = Silence(f"the deployment {state.name!r}", self._patience.silence_s)
        self._suspects = asyncio.Lock()
        self._mean_output = _FIRST_GUESS
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises `DeploymentError` if head or scheduler cannot be reached."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._frontend)
            stack.push_async_callback(self._tasks.close)
            try:
                await self._tasks.connect()
            except ConnectionLost as err:
                raise DeploymentError(err.message) from err
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def models(self) -> dict[str, int | None]:
        """Return the served model with its context in tokens, where a worker has told it."""
        return self._frontend.models()

    async def run(self, unit: Unit, take: Take) -> None:
        """Have a unit run until each request has an answer; see `Service`."""
        left = await self._attempt(unit.number, [_Asked(each) for each in unit.items], take)
        suspects = [each for each in left if each.is_suspect]
        if len(suspects) > 1:
            async with self._suspects:
                left = [each for each in left if not each.is_suspect]
                left += await self._attempt(unit.number, suspects, take)
        for each in left:
            await self._settle(unit.number, each, take)

    async def _settle(self, number: int, asked: _Asked, take: Take) -> None:
        """Try one request alone until it has an answer, or no attempts left."""
        while asked.num_failures < self._patience.attempts:
            async with self._suspects if asked.is_suspect else nullcontext():
                if not await self._attempt(number, [asked], take):
                    return
        error = asked.error or EngineError("no reason is known")
        await take(asked.item, self._reply(asked, error.http_status, error_body(error)))

    async def _attempt(self, number: int, asked: list[_Asked], take: Take) -> list[_Asked]:
        """Run some requests once, however long the service is away; return those that failed and may be tried again."""
        waits = 0
        failed: list[_Asked] = []
        while asked:
            try:
                asked, failed_now = await self._run(number, asked, take)
                failed += failed_now
                reason = "the workers gave requests back"
            except (Unavailable, ConnectionLost, WorkerLost) as err:
                reason = err.message
            if asked:
                waits += 1
                self._silence.check(reason)
                await asyncio.sleep(delay_s(number, waits))
        return failed

    async def _run(self, number: int, asked: list[_Asked], take: Take) -> tuple[list[_Asked], list[_Asked]]:
        """Return those that were given back, and those that failed and may be tried again."""
        prepared, failed = await self._prepare(asked, take)
        if not prepared:
            return [], failed
        requests = [request for each in prepared.values() for request in each.job.requests]
        try:
            outputs = await self._outputs(number, list(prepared), requests)
        except EngineError as err:
            for each in prepared:
                each.is_suspect = True
                each.fail(EngineError(err.message))
            return [], failed + list(prepared)
        self._silence.end()
        given_back: list[_Asked] = []
        for each, its_own in prepared.items():
            await self._finish(each, its_own, outputs, take, failed, given_back)
        return given_back, failed

    async def _prepare(self, asked: list[_Asked], take: Take) -> tuple[dict[_Asked, Prepared], list[_Asked]]:
        """Return what may run, and what failed in a way that nobody foresaw; what is refused has its answer."""
        prepared: dict[_Asked, Prepared] = {}
        failed: list[_Asked] = []
        for each in asked:
            item = each.item
            body = {"priority": self._priority, **item.body} if self._priority else item.body
            try:
                prepared[each] = await self._frontend.prepare(item.url, body)
            except Unavailable:
                raise
            except ModelNotFound as err:
                raise DeploymentError(f"the deployment does not serve this: {err.message}") from err
            except Exception as err:  # noqa: BLE001  an edge, as a frontend's: one request must not end the run
                error = as_hpcserve_error(err)
                if error.http_status < 500:
                    await self._refuse(each, error, take)
                else:
                    each.fail(error)
                    failed.append(each)
        return prepared, failed

    async def _outputs(
        self, number: int, asked: list[_Asked], requests: list[EngineRequest]
    ) -> dict[str, EngineOutput]:
        kinds = {_NAMES.get(each.item.url, _MIXED) for each in asked}
        each_output = self._mean_output * 2
        try:
            async with asyncio.timeout(self._patience.request_s):
                outputs = await self._tasks.run(
                    kinds.pop() if len(kinds) == 1 else _MIXED,
                    number,
                    requests,
                    is_staged=self._is_staged(requests),
                    num_output_tokens=int(sum(min(each.sampling.max_tokens, each_output) for each in requests)),
                    check=self._check,
                )
        except TimeoutError as err:
            raise EngineError(f"there was no answer in {self._patience.request_s:g} s") from err
        self._learn(outputs)
        return {each.request_id: each for each in outputs}

    async def _finish(
        self,
        asked: _Asked,
        prepared: Prepared,
        outputs: dict[str, EngineOutput],
        take: Take,
        failed: list[_Asked],
        given_back: list[_Asked],
    ) -> None:
        """Hand on the answer that a request's outputs make, or put it where it belongs."""
        try:
            body = await self._frontend.answer(prepared, (outputs[each.request_id] for each in prepared.job.requests))
        except WorkerLost as err:
            asked.reasons.append(err.message)
            given_back.append(asked)
        except BadRequest as err:
            await self._refuse(asked, err, take)
        except Exception as err:  # noqa: BLE001  as above
            asked.fail(as_hpcserve_error(err))
            failed.append(asked)
        else:
            await take(asked.item, self._reply(asked, 200, body, prepared))

    async def _refuse(self, asked: _Asked, error: HpcserveError, take: Take) -> None:
        asked.reasons.append(f"{error.http_status}: {error.message}")
        await take(asked.item, self._reply(asked, error.http_status, error_body(error)))

    def _reply(self, asked: _Asked, status: int, body: bytes, prepared: Prepared | None = None) -> Reply:
        request_id = secrets.token_hex(16) if prepared is None else prepared.record.request_id
        num_tries = len(asked.reasons) + (status == 200)
        return Reply(status, request_id, body, max(1, num_tries), tuple(asked.reasons) if num_tries > 1 else ())

    def _is_staged(self, requests: Iterable[EngineRequest]) -> bool:
        """Return whether prompts are computed by other workers: where there are such, and a prompt is worth it."""
        if self._config.pools.mode != "disaggregated":
            return False
        least = self._config.router.min_remote_prefill_tokens
        return any(len(each.token_ids) >= least and not each.embeds for each in requests)

    def _check(self) -> None:
        """Raise `DeploymentError` where nobody could have answered for too long."""
        reason = why_not_ready(self._frontend.status())
        if reason is None:
            self._silence.end()
        else:
            self._silence.check(reason)

    def _learn(self, outputs: list[EngineOutput]) -> None:
        if outputs:
            mean = sum(len(each.token_ids) for each in outputs) / len(outputs)
            self._mean_output += _MEMORY * (mean - self._mean_output)
