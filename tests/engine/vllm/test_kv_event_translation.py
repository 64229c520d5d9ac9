"""vLLM's block names become ours. The events are shaped as vLLM's, but made here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpcserve.engine.vllm.kv_events import KvEventTranslator
from hpcserve.kv.hashing import hash_blocks
from hpcserve.types import BlocksCleared, BlocksRemoved, BlocksStored

TOKENS = list(range(100, 112))  # three blocks of four
NAMES = hash_blocks(TOKENS, 4)


@dataclass
class BlockStored:
    block_hashes: list[int]
    token_ids: list[int]
    parent_block_hash: int | None = None
    block_size: int = 4
    extra_keys: list[Any] | None = None
    lora_name: str | None = None
    group_idx: int | None = 0


@dataclass
class BlockRemoved:
    block_hashes: list[int]
    group_idx: int | None = 0


@dataclass
class AllBlocksCleared:
    nothing: list[int] = field(default_factory=list)


def test_a_chain_is_named_over_several_events() -> None:
    translator = KvEventTranslator(4)
    first = translator.translate([BlockStored([1, 2], TOKENS[:8])])
    second = translator.translate([BlockStored([3], TOKENS[8:], parent_block_hash=2)])
    assert first + second == [BlocksStored(NAMES[:2]), BlocksStored(NAMES[2:])]


def test_removed_blocks_are_named_as_they_were_stored() -> None:
    translator = KvEventTranslator(4)
    translator.translate([BlockStored([1, 2, 3], TOKENS)])
    assert translator.translate([BlockRemoved([3]), BlockRemoved([9])]) == [BlocksRemoved(NAMES[2:])]


def test_a_block_held_twice_is_told_once_and_gone_when_both_are() -> None:
    translator = KvEventTranslator(4)
    translator.translate([BlockStored([1], TOKENS[:4])])
    assert translator.translate([BlockStored([1], TOKENS[:4])]) == []
    assert translator.translate([BlockRemoved([1])]) == []
    assert translator.translate([BlockRemoved([1])]) == [BlocksRemoved(NAMES[:1])]


def test_the_salt_comes_from_the_first_blocks_extra_keys() -> None:
    stored = BlockStored([1, 2], TOKENS[:8], extra_keys=[("adapter", "tenant"), None], lora_name="adapter")
    assert KvEventTranslator(4).translate([stored]) == [BlocksStored(hash_blocks(TOKENS[:8], 4, "tenant"))]


def test_a_block_without_a_known_parent_is_left_out() -> None:
    assert KvEventTranslator(4).translate([BlockStored([3], TOKENS[8:], parent_block_hash=2)]) == []


def test_other_groups_and_block_sizes_are_left_out() -> None:
    translator = KvEventTranslator(4)
    others = [BlockStored([1], TOKENS[:4], group_idx=1), BlockStored([2], TOKENS[:8], block_size=8)]
    assert translator.translate(others) == []


def test_clearing_forgets_every_name() -> None:
    translator = KvEventTranslator(4)
    translator.translate([BlockStored([1], TOKENS[:4])])
    assert translator.translate([AllBlocksCleared(), BlockRemoved([1])]) == [BlocksCleared()]
