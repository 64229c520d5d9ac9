"""Which worker gets a unit: where its prefix is, unless others have much less to do."""

from __future__ import annotations

from typing import Literal

from hpcserve.comm.protocol import UnitDemand
from hpcserve.head.unit_book import UnitBook
from hpcserve.types import BlockHash, WorkerId

A, B = WorkerId("a"), WorkerId("b")
BLOCK = 16


def demand(
    first_block: int = 0,
    *,
    shared_blocks: int = 0,
    own_tokens: int = 100,
    output: int = 0,
    stage: Literal["whole", "prefill", "decode"] = "whole",
) -> UnitDemand:
    shared = shared_blocks * BLOCK
    return UnitDemand(
        stage=stage,
        num_requests=4,
        num_tokens=4 * (shared + own_tokens),
        num_output_tokens=output,
        num_shared_tokens=shared,
        block_hashes=[BlockHash(first_block + index) for index in range(shared_blocks)],
    )


def test_units_without_a_common_prefix_are_spread_by_work() -> None:
    book = UnitBook(BLOCK)
    assert [book.place(f"u{number}", demand(), (A, B), {}) for number in range(4)] == [A, B, A, B]
    assert book.place("big", demand(own_tokens=1000), (A, B), {}) == A
    assert [book.place(f"v{number}", demand(), (A, B), {}) for number in range(3)] == [B, B, B]


def test_a_unit_goes_where_its_prefix_is_cached() -> None:
    book = UnitBook(BLOCK)
    assert book.place("u", demand(shared_blocks=8), (A, B), {B: 8}) == B


def test_a_prefix_that_was_just_given_to_a_worker_counts_as_its_own() -> None:
    book = UnitBook(BLOCK)
    assert book.place("u0", demand(100, shared_blocks=50), (A, B), {}) == A
    assert book.place("u1", demand(100, shared_blocks=50, own_tokens=10), (A, B), {}) == B, "A has too much to do"
    book.release("u0")
    book.release("u1")
    assert book.place("u2", demand(100, shared_blocks=50, own_tokens=10), (A, B), {}) == B, "which has it last"


def test_a_worker_with_much_to_do_loses_to_one_that_has_to_compute_the_prefix() -> None:
    book = UnitBook(BLOCK)
    for number in range(5):
        book.place(f"u{number}", demand(), (A,), {})
    assert book.place("u", demand(shared_blocks=2), (A, B), {A: 2}) == B


def test_work_ends_with_its_unit_and_nothing_is_kept() -> None:
    book = UnitBook(BLOCK)
    book.place("u", demand(output=10), (A,), {})
    book.place("v", demand(), (A,), {})
    assert book.work() == {A: 400 + 40 + 400}
    assert sorted(book.keys_on(A)) == ["u", "v"]
    book.release("u")
    book.release("u")
    assert book.work() == {A: 400}
    book.release("v")
    assert book.work() == {}
    assert len(book) == 0


def test_a_stage_is_booked_with_what_it_computes() -> None:
    book = UnitBook(BLOCK)
    book.place("p", demand(output=10, stage="prefill"), (A,), {})
    book.place("d", demand(output=10, stage="decode"), (B,), {})
    assert book.work() == {A: 400, B: 40}


def test_placed_anew_it_is_booked_once() -> None:
    book = UnitBook(BLOCK)
    book.place("u", demand(), (A,), {})
    assert book.place("u", demand(), (B,), {}) == B
    assert book.work() == {B: 400}
    assert book.place("u", demand(), (), {}) is None
    assert book.work() == {}
    assert book.worker_of("u") is None
