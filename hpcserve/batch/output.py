"""Result lines as OpenAI's Batch API writes them, for the output and for the errors file."""

from __future__ import annotations

from typing import Any

import msgspec
import xxhash

from hpcserve.batch.lines import Item
from hpcserve.batch.store import Result
from hpcserve.batch.unit import Reply

_MAX_REASONS = 5


def result_of(item: Item, reply: Reply) -> Result:
    """Return the line that says what became of a request, and which file it goes to."""
    response = None
    if reply.status is not None:
        body = msgspec.Raw(reply.body) if is_one_line_of_json(reply.body) else _repaired(reply.body)
        response = {"status_code": reply.status, "request_id": reply.request_id, "body": body}
    line = {
        "id": f"batch_req_{xxhash.xxh3_64_hexdigest(item.custom_id.encode())}",  # the same in every run
        "custom_id": item.custom_id,
        "response": response,
        "error": None if response else {"code": "no_answer", "message": reply.reasons[-1]},
    }
    return Result(
        line=item.number,
        custom_id=item.custom_id,
        text=msgspec.json.encode(line) + b"\n",
        failed=reply.status != 200,
        status=reply.status,
        attempts=reply.attempts,
        reasons=reply.reasons[-_MAX_REASONS:],
    )


def is_one_line_of_json(body: bytes) -> bool:
    """Return whether an answer can be put into a line as it is."""
    if b"\n" in body or b"\r" in body:
        return False
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return bool(body)


def _repaired(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode(errors="replace")  # of a proxy in between, say
