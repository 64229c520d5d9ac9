"""What moved away goes to the front of vLLM's own queue of free blocks, as vLLM's own block pool shows."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from hpcserve.engine.vllm.moved import MovedBlocks, watch_moves

pytestmark = [
    pytest.mark.real,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what vLLM imports
]


@pytest.fixture
def pool() -> Any:
    from vllm.v1.core.block_pool import BlockPool

    return BlockPool(num_gpu_blocks=301, enable_caching=True, hash_block_size=32)  # one is vLLM's own


@pytest.fixture
def moves(pool: Any) -> MovedBlocks:
    moves = watch_moves(pool)
    assert moves is not None
    return moves


def take(pool: Any, count: int, name: bytes = b"") -> list[Any]:
    """Allocate blocks; with a name they hold something that can be found."""
    blocks = pool.get_new_blocks(count)
    for index, block in enumerate(blocks if name else ()):
        pool._insert_block_hash(name + bytes([index]), block, num_tokens=32 * (index + 1))
    return blocks


def fill(pool: Any) -> None:
    """Leave no blank block, but cached ones that were used long ago."""
    pool.free_blocks(reversed(take(pool, 250, b"old")))
    rest = take(pool, pool.get_num_free_blocks() - 250, b"older")
    pool.free_blocks(reversed(rest))


def ids(blocks: list[Any]) -> list[int]:
    return [block.block_id for block in blocks]


def front(pool: Any, count: int) -> list[int]:
    return [
        block.block_id for block, _ in zip(pool.free_block_queue.iter_blocks_after(None), range(count), strict=False)
    ]


def test_what_moved_is_given_out_next_the_end_of_it_first(pool: Any, moves: MovedBlocks) -> None:
    fill(pool)
    blocks = take(pool, 4, b"moved")
    moves.ended("a", [ids(blocks)], is_leased=False)
    pool.free_blocks(reversed(blocks))
    before = pool.get_num_free_blocks()
    moves.put_first()
    assert pool.get_num_free_blocks() == before
    assert ids(pool.get_new_blocks(4)) == ids(blocks)[::-1]
    assert len(pool.get_new_blocks(before - 4)) == before - 4, "the queue is whole"


def test_blank_blocks_are_given_out_before_it(pool: Any, moves: MovedBlocks) -> None:
    fill(pool)
    blocks, blank = take(pool, 2, b"moved"), take(pool, 3)
    moves.ended("a", [ids(blocks)], is_leased=False)
    pool.free_blocks(reversed(blocks))
    pool.free_blocks(blank)
    moves.put_first()
    assert front(pool, 5) == [*ids(blank), *ids(blocks)[::-1]]


def test_nothing_is_moved_while_most_blocks_are_blank(pool: Any, moves: MovedBlocks) -> None:
    blocks = take(pool, 2, b"moved")
    moves.ended("a", [ids(blocks)], is_leased=False)
    pool.free_blocks(reversed(blocks))
    before = front(pool, 300)
    moves.put_first()
    assert front(pool, 300) == before


def test_leased_blocks_stay_until_the_other_worker_has_them(pool: Any, moves: MovedBlocks) -> None:
    fill(pool)
    blocks = take(pool, 4, b"moved")
    moves.ended("a", [ids(blocks)], is_leased=True)
    moves.put_first()
    moves.sent(["a", "unknown"])
    pool.free_blocks(reversed(blocks))
    moves.put_first()
    assert front(pool, 4) == ids(blocks)[::-1]


def test_what_others_use_or_have_overwritten_is_left_alone(pool: Any, moves: MovedBlocks) -> None:
    fill(pool)
    shared, lost = take(pool, 2, b"shared"), take(pool, 2, b"lost")
    moves.ended("a", [[*ids(shared), *ids(lost)]], is_leased=False)
    pool.touch(shared)
    pool.free_blocks(reversed(shared))
    pool.evict_blocks(set(ids(lost)))
    for index, block in enumerate(lost):
        pool._insert_block_hash(b"new" + bytes([index]), block, num_tokens=32)
    pool.free_blocks(reversed(lost))
    before = front(pool, 300)
    moves.put_first()
    assert front(pool, 300) == before


def test_a_pool_that_we_do_not_know_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert watch_moves(SimpleNamespace(free_block_queue=[])) is None
    assert "kept like others" in caplog.text
