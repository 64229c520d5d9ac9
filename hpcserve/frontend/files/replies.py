"""The bodies of /v1/files, in OpenAI's form."""

from __future__ import annotations

from typing import Literal

from hpcserve.frontend.replies import Reply
from hpcserve.jobs import FileRecord
from hpcserve.jobs.pages import Page


class FileObject(Reply, frozen=True):
    """One file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(Reply, frozen=True):
    """A page of files."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Reply, frozen=True):
    """A file is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


def file_object(record: FileRecord) -> FileObject:
    """Return what clients are told of a file."""
    return FileObject(
        id=record.id,
        object="file",
        bytes=record.bytes,
        created_at=record.created_at,
        expires_at=record.expires_at,
        filename=record.filename,
        purpose=record.purpose,
        status="processed",
    )


def file_list(page: Page[FileRecord]) -> FileList:
    """Return a page as clients get it."""
    data = [file_object(each) for each in page.items]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(object="list", data=data, first_id=first, last_id=last, has_more=page.has_more)
