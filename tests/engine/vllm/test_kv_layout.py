"""Blocks are found in tensors of any layout, and the right bytes are copied between engines of different sizes."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from hpcserve.engine.vllm.kv_layout import find_layout
from hpcserve.errors import KVError

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")

BLOCK = 16  # tokens


def zeros(*shape: int) -> torch.Tensor:
    import torch  # which takes long: not while tests are collected

    return torch.zeros(*shape)


def apart(num_blocks: int) -> torch.Tensor:
    return zeros(2, num_blocks, 3, BLOCK, 8)


def together(num_blocks: int) -> torch.Tensor:
    return zeros(num_blocks, 2, 3, BLOCK, 8)


def turned(num_blocks: int) -> torch.Tensor:
    return zeros(num_blocks, 2, BLOCK, 3, 8).permute(1, 0, 3, 2, 4)


def latent(num_blocks: int) -> torch.Tensor:
    return zeros(num_blocks, BLOCK, 24)


def small_kernel_blocks(num_blocks: int) -> torch.Tensor:
    return zeros(num_blocks * 2, 2, 3, BLOCK // 2, 8)


AXES = {apart: 1, together: 0, turned: 1, latent: 0, small_kernel_blocks: 0}


@pytest.mark.parametrize("make", AXES)
@pytest.mark.parametrize(
    ("remote", "local"), [([7, 8, 9, 3], [1, 2, 3, 4]), ([9, 8, 7], [0, 1, 2]), ([0], [5]), ([4, 5], [4, 5])]
)
def test_blocks_arrive_where_they_belong(make, remote: list[int], local: list[int]) -> None:  # type: ignore[no-untyped-def]
    import torch

    theirs, ours = ([make(num) for _ in range(2)] for num in (10, 6))
    for tensor in theirs:
        tensor.copy_(torch.randn(tensor.shape))
    expected = [tensor.clone() for tensor in ours]
    their_layout, their_regions = find_layout({str(i): each for i, each in enumerate(theirs)}, 10, BLOCK)
    our_layout, our_regions = find_layout({str(i): each for i, each in enumerate(ours)}, 6, BLOCK)
    assert our_layout.why_unlike(their_layout) is None
    for copy in our_layout.copies_from(their_layout, remote, local):
        source, target = their_regions[copy.remote_region - 1], our_regions[copy.local_region - 1]
        assert copy.remote_offset + copy.size <= source.size
        assert copy.local_offset + copy.size <= target.size
        ctypes.memmove(target.address + copy.local_offset, source.address + copy.remote_offset, copy.size)
    axis, ratio = AXES[make], theirs[0].shape[AXES[make]] // 10
    for tensor, source in zip(expected, theirs, strict=True):
        for there, here in zip(remote, local, strict=True):
            for part in range(ratio):
                tensor.select(axis, here * ratio + part).copy_(source.select(axis, there * ratio + part))
    assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))


def test_blocks_in_a_row_are_one_range() -> None:
    layout, _ = find_layout({"a": together(10)}, 10, BLOCK)
    assert len(layout.copies_from(layout, [3, 4, 5, 6], [0, 1, 2, 3])) == 1
    assert len(layout.copies_from(layout, [3, 4, 6], [0, 1, 2])) == 2


def test_layers_that_share_a_tensor_are_copied_once() -> None:
    shared = together(10)
    layout, regions = find_layout({"a": shared, "b": shared, "c": together(10)}, 10, BLOCK)
    assert (layout.num_layers, len(regions)) == (2, 2)


OTHERS: dict[str, Callable[[], torch.Tensor]] = {
    "narrower numbers": lambda: together(10).half(),
    "smaller blocks": lambda: together(10)[:, :, :, :8].contiguous(),
    "other strides": lambda: turned(10),
    "another order of axes": lambda: zeros(10, 2, BLOCK, 3, 8),
}


@pytest.mark.parametrize("other", OTHERS)
def test_unlike_layouts_are_told_apart(other: str) -> None:
    ours, _ = find_layout({"a": together(10)}, 10, BLOCK)
    theirs, _ = find_layout({"a": OTHERS[other]()}, 10, BLOCK)
    assert "laid out" in (ours.why_unlike(theirs) or "")


def test_layers_of_different_layouts_are_refused() -> None:
    with pytest.raises(KVError, match="2 different layouts"):
        find_layout({"a": together(10), "b": latent(10)}, 10, BLOCK)


@pytest.mark.parametrize("make", [lambda: together(10)[..., ::2], lambda: zeros(3, 7)])
def test_blocks_that_are_not_whole_are_refused(make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(KVError, match="KV of shape"):
        find_layout({"a": make()}, 10, BLOCK)
