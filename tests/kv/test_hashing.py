"""Block hashes name prefixes, and mean the same in every process."""

import os
import subprocess
import sys
import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.errors import BadRequest
from hpcserve.kv.hashing import extend_hash, hash_blocks

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=80)


@given(TOKENS, st.integers(1, 9), st.sampled_from([None, "", "tenant"]))
def test_hashing_block_by_block_equals_hashing_all_at_once(tokens: list[int], size: int, salt: str | None) -> None:
    parent, chained = None, []
    for start in range(0, len(tokens) - size + 1, size):
        parent = extend_hash(parent, tokens[start : start + size], salt)
        chained.append(parent)
    assert chained == hash_blocks(tokens, size, salt)


def test_a_changed_token_changes_its_block_and_all_after_it() -> None:
    tokens = list(range(64))
    before = hash_blocks(tokens, 16)
    tokens[20] += 1
    after = hash_blocks(tokens, 16)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False, False]


def test_equal_blocks_at_different_places_have_different_hashes() -> None:
    assert len(set(hash_blocks([7] * 64, 16))) == 4


def test_a_partial_last_block_is_ignored() -> None:
    assert hash_blocks(range(39), 16) == hash_blocks(range(32), 16)
    assert hash_blocks(range(15), 16) == []
    assert hash_blocks([], 16) == []


def test_salts_never_share_a_prefix() -> None:
    hashes = [hash_blocks(range(32), 16, salt) for salt in (None, "", "a", "b")]
    assert len({h for chain in hashes for h in chain}) == 8


def test_the_hashes_are_what_they_always_were() -> None:
    assert hash_blocks(range(8), 4) == [18130940959279149016, 17166052053321684577]
    assert hash_blocks(range(8), 4, "a") == [7634899607787355270, 5017494329488351111]


def test_a_child_process_with_another_hash_seed_computes_the_same() -> None:
    code = "from hpcserve.kv.hashing import hash_blocks; print(*hash_blocks(range(512), 32, 'salt'))"
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
        assert [int(word) for word in out.split()] == hash_blocks(range(512), 32, "salt")


@pytest.mark.parametrize("token", [-1, 2**32, 2**70])
def test_a_token_outside_32_bits_is_named_in_the_error(token: int) -> None:
    with pytest.raises(BadRequest, match=f"token 5 of the prompt is {token}"):
        hash_blocks([0, 1, 2, 3, 4, token, 6, 7], 4)
    with pytest.raises(BadRequest, match=f"is {token}"):
        extend_hash(None, [token])


def test_a_block_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        hash_blocks([1, 2], 0)


def test_blocks_are_hashed_without_a_step_of_python_for_each_token() -> None:
    tokens = list(range(16384))
    hashing = min(timeit.repeat(lambda: hash_blocks(tokens, 16), number=1, repeat=50))  # 0.3 to 0.4 ms on an idle core
    stepping = min(timeit.repeat(lambda: [str(token) for token in tokens], number=1, repeat=50))  # 1.6 ms
    assert hashing < 0.5 * stepping
