"""One file and one batch, as they are kept. The names of fields and of statuses are those of OpenAI's API."""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal

import msgspec

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
FINAL: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})
ACTIVE: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")

_ID_BYTES = 12


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file."""

    id: str
    tenant: str  # whose it is
    filename: str
    purpose: str
    bytes: int
    created_at: int  # Unix time, as all times here
    expires_at: int | None = None


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with an input."""

    code: str
    message: str
    line: int | None = None  # of the input, from 1
    param: str | None = None


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of one batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One batch."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: BatchStatus = "validating"
    is_checked: bool = False  # nothing is wrong with its input
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    counts: RequestCounts = RequestCounts()
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_expires_s: int | None = None  # after they are made; None: as all files
    errors: tuple[BatchError, ...] = ()
    metadata: dict[str, str] | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status in FINAL

    def result_id(self, kind: Literal["output", "errors"]) -> str:
        """Return the id of a file of its results: the same however often they are made."""
        return f"file-{hashlib.sha256(f'{self.id}:{kind}'.encode()).hexdigest()[: 2 * _ID_BYTES]}"


def new_file_id() -> str:
    """Return an id that no file has."""
    return f"file-{secrets.token_hex(_ID_BYTES)}"


def new_batch_id() -> str:
    """Return an id that no batch has."""
    return f"batch_{secrets.token_hex(_ID_BYTES)}"
