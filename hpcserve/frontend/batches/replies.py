"""The bodies of /v1/batches, in OpenAI's form."""

from __future__ import annotations

from typing import Literal

from hpcserve.frontend.replies import Reply
from hpcserve.jobs import BatchRecord, BatchStatus
from hpcserve.jobs.pages import Page


class BatchProblem(Reply, frozen=True):
    """One thing that is wrong with the input."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchProblems(Reply, frozen=True):
    """All that is wrong with the input, or the first of it."""

    object: Literal["list"]
    data: list[BatchProblem]


class BatchCounts(Reply, frozen=True):
    """Requests of a batch."""

    total: int
    completed: int
    failed: int


class BatchObject(Reply, frozen=True):
    """One batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchProblems | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    metadata: dict[str, str] | None


class BatchList(Reply, frozen=True):
    """A page of batches."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def batch_object(record: BatchRecord) -> BatchObject:
    """Return what clients are told of a batch."""
    problems = [BatchProblem(each.code, each.line, each.message, each.param) for each in record.errors]
    counts = record.counts
    return BatchObject(
        id=record.id,
        object="batch",
        endpoint=record.endpoint,
        errors=BatchProblems("list", problems) if problems else None,
        input_file_id=record.input_file_id,
        completion_window=record.completion_window,
        status=record.status,
        output_file_id=record.output_file_id,
        error_file_id=record.error_file_id,
        created_at=record.created_at,
        in_progress_at=record.in_progress_at,
        expires_at=record.expires_at,
        finalizing_at=record.finalizing_at,
        completed_at=record.completed_at,
        failed_at=record.failed_at,
        expired_at=record.expired_at,
        cancelling_at=record.cancelling_at,
        cancelled_at=record.cancelled_at,
        request_counts=BatchCounts(counts.total, counts.completed, counts.failed),
        metadata=record.metadata,
    )


def batch_list(page: Page[BatchRecord]) -> BatchList:
    """Return a page as clients get it."""
    data = [batch_object(each) for each in page.items]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BatchList(object="list", data=data, first_id=first, last_id=last, has_more=page.has_more)
