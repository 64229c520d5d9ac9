"""Reads the form that a file comes in (RFC 7578): its bytes go to disk as they arrive, the other fields are short."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from hpcserve.errors import BadRequest, BodyTooLarge, BodyTooSlow
from hpcserve.jobs.blobs import BlobWriter

_CHUNK_BYTES = 2**18
_MAX_FIELD_BYTES = 1024
_MAX_FIELDS = 16
_MAX_NAME_CHARS = 255
_IDLE_S = 60.0
_SLACK_BYTES = 65_536  # of a form besides the file
_BROKEN = (
    HttpProcessingError,
    ValueError,
    AssertionError,
    RuntimeError,
    LookupError,
    EOFError,
    web.RequestPayloadError,
)


@dataclass(frozen=True)
class Form:
    """What came: the file's name, and the other fields by theirs. The bytes are with the writer."""

    filename: str
    fields: dict[str, str]


async def read_form(request: web.Request, writer: BlobWriter, max_bytes: int) -> Form:
    """Read the body. Raises `BadRequest`, `BodyTooLarge` or `BodyTooSlow`."""
    _check(request, max_bytes)
    try:
        return await _Reader(writer).read(await request.multipart())
    except TimeoutError as err:
        raise BodyTooSlow(f"nothing of the body arrived for {_IDLE_S:.0f} s") from err
    except _BROKEN as err:
        raise BadRequest(f"the body is not a form that can be read: {_last_line(err)}") from err


class _Reader:
    """Goes through the parts of one form."""

    def __init__(self, writer: BlobWriter) -> None:
        self._writer = writer
        self._filename: str | None = None
        self._fields: dict[str, str] = {}

    async def read(self, parts: MultipartReader) -> Form:
        for _ in range(_MAX_FIELDS):
            async with asyncio.timeout(_IDLE_S):
                part = await parts.next()
            if part is None:
                return self._whole()
            if not isinstance(part, BodyPartReader) or not part.name:
                raise BadRequest("every part of the form needs a name, and may have no parts itself")
            await self._take(part, part.name)
        raise BadRequest(f"the form has more than {_MAX_FIELDS} fields")

    async def _take(self, part: BodyPartReader, name: str) -> None:
        encoded = part.headers.get(hdrs.CONTENT_ENCODING) or part.headers.get(hdrs.CONTENT_TRANSFER_ENCODING)
        if encoded and encoded.lower() not in ("identity", "binary", "8bit", "7bit"):
            raise BadRequest(f"{name[:80]}: send it as it is, not encoded as {encoded[:40]!r}", param=name[:80])
        if name in self._fields or (name == "file" and self._filename is not None):
            raise BadRequest(f"{name[:80]} is there twice", param=name[:80])
        if name == "file":
            self._filename = _name_of(part)
            async for chunk in _chunks(part):
                await asyncio.to_thread(self._writer.write, chunk)
        else:
            self._fields[name] = await _text(part, name)

    def _whole(self) -> Form:
        if self._filename is None:
            raise BadRequest("file is required: a part of the form with that name", param="file")
        return Form(self._filename, self._fields)


async def _chunks(part: BodyPartReader):  # type: ignore[no-untyped-def]
    while not part.at_eof():
        async with asyncio.timeout(_IDLE_S):
            chunk = await part.read_chunk(_CHUNK_BYTES)
        if chunk:
            yield bytes(chunk)


async def _text(part: BodyPartReader, name: str) -> str:
    value = b""
    async for chunk in _chunks(part):
        value += chunk
        if len(value) > _MAX_FIELD_BYTES:
            raise BadRequest(f"{name[:80]} is over {_MAX_FIELD_BYTES} bytes", param=name[:80])
    with suppress(UnicodeDecodeError):
        return value.decode()
    raise BadRequest(f"{name[:80]} is not UTF-8", param=name[:80])


def _name_of(part: BodyPartReader) -> str:
    """Return the last part of the path that the client gave: it is shown, and never used as one."""
    name = (part.filename or "file").replace("\\", "/").rpartition("/")[2]
    shown = "".join(each if each.isprintable() else "_" for each in name)
    return shown[:_MAX_NAME_CHARS] or "file"


def _check(request: web.Request, max_bytes: int) -> None:
    if request.content_type != "multipart/form-data":
        raise BadRequest(f"send the file as multipart/form-data, got {request.content_type!r}")
    # Browsers post forms to anybody without asking, so also pages of somebody else's to a server on loopback.
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise BadRequest("files are not taken from pages of other sites")
    if (request.content_length or 0) > max_bytes + _SLACK_BYTES:
        raise BodyTooLarge(f"the file is over the limit of {max_bytes / 1e6:g} MB (batches.max_file_mb)", param="file")


def _last_line(error: BaseException) -> str:
    return str(error).split("\n")[-1].strip()[:200] or type(error).__name__
