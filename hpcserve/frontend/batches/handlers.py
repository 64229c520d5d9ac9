"""The routes of /v1/batches: they write down what is wanted, and tell what has become of it."""

from __future__ import annotations

import asyncio
import time

import msgspec
from aiohttp import web

from hpcserve.errors import BadRequest, NotFound
from hpcserve.frontend.batches.replies import batch_list, batch_object
from hpcserve.frontend.batches.schemas import BatchBody, ListBatchesQuery
from hpcserve.frontend.body import read_object
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.queries import read_query
from hpcserve.frontend.stored import jobs_of, owner_of
from hpcserve.frontend.validation import validate
from hpcserve.jobs import BatchRecord, new_batch_id
from hpcserve.jobs.pages import Wanted


async def create_batch(request: web.Request) -> web.Response:
    """POST /v1/batches."""
    jobs, tenant = jobs_of(request), owner_of(request)
    body = validate(BatchBody, await read_object(request))
    now = int(time.time())
    try:
        source = await asyncio.to_thread(jobs.files.get, tenant, body.input_file_id, now)
    except NotFound as err:
        raise NotFound(err.message, param="input_file_id") from err
    if source.purpose != "batch":
        message = f"{source.id} is a file for {source.purpose!r}; upload one with purpose 'batch'"
        raise BadRequest(message, param="input_file_id")
    record = BatchRecord(
        id=new_batch_id(),
        tenant=tenant,
        endpoint=body.endpoint,
        input_file_id=source.id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + body.window_s,
        output_expires_s=body.output_expires_after.seconds if body.output_expires_after else None,
        metadata=body.metadata,
    )
    await asyncio.to_thread(jobs.batches.add, record)
    return _answer(record)


async def list_batches(request: web.Request) -> web.Response:
    """GET /v1/batches."""
    query = read_query(request, ListBatchesQuery)
    wanted = Wanted(limit=query.limit, after=query.after)
    page = await asyncio.to_thread(jobs_of(request).batches.page, owner_of(request), wanted)
    return json_response(msgspec.json.encode(batch_list(page)))


async def get_batch(request: web.Request) -> web.Response:
    """GET /v1/batches/{id}."""
    return _answer(await asyncio.to_thread(jobs_of(request).batches.get, owner_of(request), request.match_info["id"]))


async def cancel_batch(request: web.Request) -> web.Response:
    """POST /v1/batches/{id}/cancel: what runs is ended within seconds, what has ended is kept."""
    batches, tenant, batch_id = jobs_of(request).batches, owner_of(request), request.match_info["id"]
    await asyncio.to_thread(batches.get, tenant, batch_id)  # whose it is
    return _answer(await asyncio.to_thread(batches.change, batch_id, _cancelled))


def _cancelled(record: BatchRecord) -> BatchRecord:
    if record.status in ("cancelling", "cancelled"):
        return record
    if record.is_final or record.status == "finalizing":
        raise BadRequest(f"{record.id} cannot be cancelled any more: it is {record.status}")
    return msgspec.structs.replace(record, status="cancelling", cancelling_at=int(time.time()))


def _answer(record: BatchRecord) -> web.Response:
    return json_response(msgspec.json.encode(batch_object(record)))
