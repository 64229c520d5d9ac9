"""Limits of keys where several frontends ask the head: counted once, given back when a frontend is gone."""

from __future__ import annotations

import pytest

from hpcserve.errors import RateLimited
from hpcserve.head.limits import LimitBook
from hpcserve.keys import Limits

A, B = "frontend a", "frontend b"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_of_all_frontends_count_together() -> None:
    clock = Clock()
    book, limits = LimitBook(clock), Limits(requests_per_minute=3)
    for connection in (A, B, A):
        book.begin(connection, "alice", limits)
    with pytest.raises(RateLimited, match="3 requests a minute"):
        book.begin(B, "alice", limits)
    book.begin(B, "bob", limits)
    clock.now += 20
    book.begin(B, "alice", limits)


def test_what_runs_ends_with_its_frontend() -> None:
    book, limits = LimitBook(Clock()), Limits(max_concurrent=2)
    book.begin(A, "alice", limits)
    book.begin(B, "alice", limits)
    with pytest.raises(RateLimited, match="2 requests under way"):
        book.begin(B, "alice", limits)
    book.leave(A)
    book.begin(B, "alice", limits)
    book.end(B, "alice")
    book.end(B, "alice")
    book.end(B, "alice")  # began at another head: not counted here
    book.end(A, "alice")
    for _ in range(2):
        book.begin(B, "alice", limits)
    with pytest.raises(RateLimited):
        book.begin(B, "alice", limits)


def test_tokens_of_all_frontends_delay_the_next_request_of_any() -> None:
    book, limits = LimitBook(Clock()), Limits(tokens_per_minute=60)
    book.count_tokens("nobody", 100)
    book.begin(A, "alice", limits)
    book.count_tokens("alice", 100)
    with pytest.raises(RateLimited, match="try again in 41 s"):
        book.begin(B, "alice", limits)


def test_new_limits_hold_from_the_next_request_on() -> None:
    book = LimitBook(Clock())
    book.begin(A, "alice", Limits(max_concurrent=1))
    book.begin(B, "alice", Limits(max_concurrent=2))
    with pytest.raises(RateLimited):
        book.begin(A, "alice", Limits(max_concurrent=2))
