"""Lists in pages, as OpenAI's API gives them: so many after a certain one."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from hpcserve.errors import NotFound

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which part of a list."""

    limit: int
    after: str | None = None  # id of the last one of the page before
    order: Literal["asc", "desc"] = "desc"  # by creation
    purpose: str | None = None  # of files


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list."""

    items: list[T]
    has_more: bool


def rows(
    connection: sqlite3.Connection, table: Literal["files", "batches"], tenant: str, wanted: Wanted
) -> list[bytes]:
    """Return the records of a page, and one more where there is one. Raises `NotFound` for an unknown `after`."""
    conditions, values = ["tenant = ?"], [tenant]
    if wanted.after is not None:
        found = connection.execute(
            f"SELECT number FROM {table} WHERE id = ? AND tenant = ?",  # noqa: S608  one of two words
            (wanted.after, tenant),
        ).fetchone()
        if found is None:
            raise NotFound(f"after: there is no {wanted.after[:80]!r}", param="after")
        conditions.append("number < ?" if wanted.order == "desc" else "number > ?")
        values.append(found[0])
    if wanted.purpose is not None:
        conditions.append("purpose = ?")
        values.append(wanted.purpose)
    order = "DESC" if wanted.order == "desc" else "ASC"
    query = f"SELECT record FROM {table} WHERE {' AND '.join(conditions)} ORDER BY number {order} LIMIT ?"  # noqa: S608
    return [row[0] for row in connection.execute(query, (*values, wanted.limit + 1))]
