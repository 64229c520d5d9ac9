"""The routes of /v1/files. What is on disk is read and written beside the event loop."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import msgspec
from aiohttp import web

from hpcserve.errors import BadRequest, NotFound
from hpcserve.frontend.context import FRONTEND
from hpcserve.frontend.errors import json_response
from hpcserve.frontend.files.replies import FileDeleted, file_list, file_object
from hpcserve.frontend.files.schemas import FileFields, ListFilesQuery
from hpcserve.frontend.files.upload import Form, read_form
from hpcserve.frontend.queries import read_query
from hpcserve.frontend.stored import jobs_of, owner_of
from hpcserve.frontend.validation import validate
from hpcserve.jobs import FileRecord, new_file_id
from hpcserve.jobs.pages import Wanted

_EXPIRY_FIELD = re.compile(r"expires_after\[(anchor|seconds)\]")
_DAY_S = 86_400


async def create_file(request: web.Request) -> web.Response:
    """POST /v1/files."""
    jobs, limits = jobs_of(request), request.app[FRONTEND].config.batches
    file_id, max_bytes = new_file_id(), int(limits.max_file_mb * 1e6)
    with jobs.files.blobs.writer(file_id, max_bytes) as writer:
        form = await read_form(request, writer, max_bytes)
        fields = _validated(form)
        if not writer.num_bytes:
            raise BadRequest("the file is empty", param="file")
        now = int(time.time())
        kept_s = fields.expires_after.seconds if fields.expires_after else int(limits.keep_days * _DAY_S)
        record = FileRecord(
            id=file_id,
            tenant=owner_of(request),
            filename=form.filename,
            purpose=fields.purpose,
            bytes=writer.num_bytes,
            created_at=now,
            expires_at=now + kept_s,
        )
        await asyncio.to_thread(writer.keep)
        await asyncio.to_thread(jobs.files.add, record)
    return json_response(msgspec.json.encode(file_object(record)))


async def list_files(request: web.Request) -> web.Response:
    """GET /v1/files."""
    query = read_query(request, ListFilesQuery)
    wanted = Wanted(limit=query.limit, after=query.after, order=query.order, purpose=query.purpose)
    page = await asyncio.to_thread(jobs_of(request).files.page, owner_of(request), wanted, time.time())
    return json_response(msgspec.json.encode(file_list(page)))


async def get_file(request: web.Request) -> web.Response:
    """GET /v1/files/{id}."""
    return json_response(msgspec.json.encode(file_object(await _find(request))))


async def get_content(request: web.Request) -> web.StreamResponse:
    """GET /v1/files/{id}/content."""
    record = await _find(request)
    path = jobs_of(request).files.path(record)
    if not await asyncio.to_thread(path.is_file):
        raise NotFound(f"the bytes of {record.id} are gone")
    headers = {"Content-Type": "application/octet-stream", "Content-Disposition": f'attachment; filename="{record.id}"'}
    return web.FileResponse(path, headers=headers)


async def delete_file(request: web.Request) -> web.Response:
    """DELETE /v1/files/{id}."""
    file_id = request.match_info["id"]
    await asyncio.to_thread(jobs_of(request).files.remove, owner_of(request), file_id)
    return json_response(msgspec.json.encode(FileDeleted(id=file_id, object="file", deleted=True)))


async def _find(request: web.Request) -> FileRecord:
    files = jobs_of(request).files
    return await asyncio.to_thread(files.get, owner_of(request), request.match_info["id"], time.time())


def _validated(form: Form) -> FileFields:
    fields: dict[str, Any] = {}
    for name, value in form.fields.items():
        expiry = _EXPIRY_FIELD.fullmatch(name)
        if expiry is None:
            fields[name] = value
        else:
            is_number = expiry[1] == "seconds" and value.isascii() and value.isdecimal() and len(value) < 12
            fields.setdefault("expires_after", {})[expiry[1]] = int(value) if is_number else value
    return validate(FileFields, fields)
