"""The life of one batch: checked, run, its results made files. It can be left at any moment, and gone on with.

Results are written by `batch/store.py`, beside a ledger, in a directory of the batch's own; when they are complete
they become files, and the batch is finished in one step. So a process that is killed loses nothing, and repeats nothing
that counts.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import xxhash

from hpcserve.batch.client import Client, Patience
from hpcserve.batch.connecting import Endpoint
from hpcserve.batch.lines import Item
from hpcserve.batch.paths import Paths
from hpcserve.batch.plan import Plan, Work
from hpcserve.batch.run import Batch, Stop
from hpcserve.batch.source import TextLines
from hpcserve.batch.store import Result
from hpcserve.batch.tally import Tally
from hpcserve.batch.uploaded.checking import PrioritizedLines, Rules, check_lines
from hpcserve.config.service_models import BatchesConfig
from hpcserve.jobs import BatchError, BatchRecord, BatchStatus, FileRecord, JobStore, RequestCounts

_WATCH_S = 0.5
_DAY_S = 86_400
_EXPIRED = {"code": "batch_expired", "message": "the completion window ended before this request was run"}
_PATIENCE = Patience(waits=1_000_000, silence_s=60.0)  # then the endpoint is looked for again
_ENDS: dict[BatchStatus, str] = {
    "completed": "completed_at",
    "failed": "failed_at",
    "expired": "expired_at",
    "cancelled": "cancelled_at",
}


@dataclass(frozen=True)
class Target:
    """A deployment's endpoint, and what it serves."""

    endpoint: Endpoint
    models: Mapping[str, int | None]
    window: int  # requests to be under way at once


class Job:
    """One batch, in one process."""

    def __init__(self, record: BatchRecord, store: JobStore, config: BatchesConfig, clock: Callable[[], float]) -> None:
        self.record = record
        self._store = store
        self._config = config
        self._clock = clock
        self._input = TextLines(store.files.blobs.path(record.input_file_id))
        self._paths = Paths(store.working_directory(record.id) / "output.jsonl")

    async def reload(self) -> BatchRecord:
        """Return the batch as it is now. Raises `NotFound`."""
        self.record = await asyncio.to_thread(self._store.batches.get, self.record.tenant, self.record.id)
        return self.record

    async def check(self, target: Target, allowed: frozenset[str] | None) -> None:
        """Find what is wrong with the input. The batch fails where there is something; else it may run."""
        rules = Rules(self.record.endpoint, self._config.max_lines, target.models, allowed)
        found = await asyncio.to_thread(check_lines, self._input, rules, self._config.priority)
        if found.errors:
            await self.fail(found.errors)
            return
        counts = RequestCounts(total=found.num_requests)
        await self._change(lambda now: msgspec.structs.replace(now, is_checked=True, counts=counts))

    async def run(self, target: Target) -> None:
        """Run what is not finished, until all is, or the batch is cancelled or expires; then make files of the results.

        Raises `DeploymentError` where the endpoint stays away: the batch can be gone on with; `ConfigError` where its
        results were changed.
        """
        started = int(self._clock())
        await self._change(
            lambda now: (
                msgspec.structs.replace(now, status="in_progress", in_progress_at=now.in_progress_at or started)
                if now.status == "validating"
                else now
            )
        )
        stop = Stop()
        is_complete = False
        if self.record.status == "in_progress" and not self._is_over():
            is_complete = await self._run_plan(target, stop)
        await self.reload()
        await self.finish(is_complete=is_complete or self.record.status == "finalizing")

    async def finish(self, *, is_complete: bool) -> None:
        """Make files of the results, and end the batch: as cancelled, expired or completed."""
        outcome: BatchStatus = "completed" if is_complete else "expired"
        if self.record.status == "cancelling":
            outcome = "cancelled"
        elif not is_complete and self.record.is_checked:
            await asyncio.to_thread(self._expire_rest)
        finalizing = int(self._clock())
        if outcome == "completed":
            await self._change(
                lambda now: (
                    msgspec.structs.replace(now, status="finalizing", finalizing_at=now.finalizing_at or finalizing)
                    if now.status == "in_progress"
                    else now
                )
            )
        results = await asyncio.to_thread(self._keep_results)
        await self._end(outcome, **results)

    async def fail(self, errors: list[BatchError]) -> None:
        """End the batch for what is wrong with it; answers that it has are kept."""
        await self._change(lambda now: msgspec.structs.replace(now, errors=tuple(errors)))
        await self._end("failed", **await asyncio.to_thread(self._keep_results))

    async def _run_plan(self, target: Target, stop: Stop) -> bool:
        plan = Plan(self._input, PrioritizedLines(self._config.priority), self._paths)
        opening = plan.opened(target.models)
        work = await asyncio.to_thread(opening.__enter__)
        try:
            endpoint = replace(target.endpoint, tenant=self.record.tenant)
            async with Client(endpoint, _PATIENCE) as client:
                watching = asyncio.create_task(self._watch(work.tally, stop))
                try:
                    return await Batch(work, client, stop, window=target.window).run()
                finally:
                    watching.cancel()
                    with suppress(asyncio.CancelledError):
                        await watching
                    await self._count(work.tally)
        finally:
            await asyncio.to_thread(opening.__exit__, None, None, None)

    async def _watch(self, tally: Tally, stop: Stop) -> None:
        """Tell how far it is, and stop at once when it is cancelled or its window has ended."""
        while True:
            await self._count(tally)
            if self.record.status != "in_progress" or self._is_over():
                stop.soon.set()
                stop.now.set()
                return
            await asyncio.sleep(_WATCH_S)

    async def _count(self, tally: Tally) -> None:
        counts = RequestCounts(
            total=tally.num_requests, completed=tally.num_finished - tally.num_failed, failed=tally.num_failed
        )
        if counts == self.record.counts:
            await self.reload()
        else:
            await self._change(lambda now: msgspec.structs.replace(now, counts=counts))

    def _is_over(self) -> bool:
        return self._clock() >= self.record.expires_at

    def _expire_rest(self) -> None:
        """Write down of every request that is not finished that it never will be."""
        plan = Plan(self._input, PrioritizedLines(self._config.priority), self._paths)
        with plan.opened({str(model): None for model in self._models()}) as work:
            group: list[Result] = []
            for item in work.items():
                group.append(_expired(item))
                if len(group) == 1024:
                    work.store.write(group)
                    group = []
            work.store.write(group)
        self._recount(work)

    def _models(self) -> set[str]:
        """Return the models that the input names: it was checked when these were served."""
        reader = PrioritizedLines(self._config.priority)
        items = (reader.read(number, raw) for number, raw in enumerate(self._input, 1))
        return {str(item.body.get("model")) for item in items if isinstance(item, Item)}

    def _recount(self, work: Work) -> None:
        tally = work.tally
        completed = tally.num_finished - tally.num_failed
        counts = RequestCounts(total=tally.num_requests, completed=completed, failed=tally.num_requests - completed)
        self.record = self._store.batches.change(
            self.record.id, lambda now: msgspec.structs.replace(now, counts=counts)
        )

    def _keep_results(self) -> dict[str, str | None]:
        return {
            "output_file_id": self._keep("output", self._paths),
            "error_file_id": self._keep("errors", self._paths),
        }

    def _keep(self, kind: Literal["output", "errors"], paths: Paths) -> str | None:
        path = paths.output if kind == "output" else paths.errors
        file_id = self.record.result_id(kind)
        if not path.exists() or not path.stat().st_size:
            return None
        now = int(self._clock())
        kept_s = self.record.output_expires_s or int(self._config.keep_days * _DAY_S)
        size = self._store.files.blobs.take(file_id, path)
        self._store.files.add(
            FileRecord(
                id=file_id,
                tenant=self.record.tenant,
                filename=f"{self.record.id}_{kind}.jsonl",
                purpose="batch_output",
                bytes=size,
                created_at=now,
                expires_at=now + kept_s,
            )
        )
        return file_id

    async def _end(self, status: BatchStatus, *, output_file_id: str | None, error_file_id: str | None) -> None:
        ended = {_ENDS[status]: int(self._clock())}
        await self._change(
            lambda now: (
                msgspec.structs.replace(
                    now, status=status, output_file_id=output_file_id, error_file_id=error_file_id, **ended
                )
                if not now.is_final
                else now
            )
        )
        await asyncio.to_thread(self._forget_work)

    def _forget_work(self) -> None:
        shutil.rmtree(self._paths.output.parent, ignore_errors=True)

    async def _change(self, step: Callable[[BatchRecord], BatchRecord]) -> None:
        self.record = await asyncio.to_thread(self._store.batches.change, self.record.id, step)


def _expired(item: Item) -> Result:
    line = {
        "id": f"batch_req_{xxhash.xxh3_64_hexdigest(item.custom_id.encode())}",
        "custom_id": item.custom_id,
        "response": None,
        "error": _EXPIRED,
    }
    text = msgspec.json.encode(line) + b"\n"
    return Result(item.number, item.custom_id, text, failed=True, status=None, attempts=0, reasons=())
