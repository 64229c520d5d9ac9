"""Where the KV of a block lies in an engine's tensors, and which bytes two engines copy for it. Moves nothing.

Each layer has one tensor; in memory it may hold keys and values apart, with all blocks in between: then a block is two
pieces a layer. Engines exchange layouts, since the pieces lie further apart where there are more blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcserve.errors import KVError
from hpcserve.kv.transport import Copy, Region

FIRST_LAYER = 1
"""The layers' regions come after that of the leases."""


@dataclass(frozen=True)
class Layout:
    """The same for all layers of an engine. Sizes are bytes."""

    num_layers: int
    pieces: tuple[int, ...]  # where the pieces of block 0 begin
    piece_bytes: int
    block_stride: int  # from a piece of one block to that of the next
    shape: str  # what must be equal for the bytes to mean the same: block size, element type, order of the axes

    def why_unlike(self, other: Layout) -> str | None:
        """Return why blocks of `other` cannot be copied here; None if they can."""
        ours = (self.shape, self.num_layers, len(self.pieces), self.piece_bytes)
        theirs = (other.shape, other.num_layers, len(other.pieces), other.piece_bytes)
        return None if ours == theirs else f"its KV is laid out as {theirs}, ours as {ours}"

    def copies_from(self, other: Layout, remote: Sequence[int], local: Sequence[int]) -> list[Copy]:
        """Return the copies that bring `remote` blocks of a peer of layout `other` into `local` ones, in that order."""
        is_dense = self.block_stride == other.block_stride == self.piece_bytes
        runs = _runs(remote, local) if is_dense else [(*pair, 1) for pair in zip(remote, local, strict=True)]
        return [
            Copy(
                remote_region=FIRST_LAYER + layer,
                remote_offset=theirs + first_remote * other.block_stride,
                local_region=FIRST_LAYER + layer,
                local_offset=ours + first_local * self.block_stride,
                size=length * self.piece_bytes,
            )
            for layer in range(self.num_layers)
            for theirs, ours in zip(other.pieces, self.pieces, strict=True)
            for first_remote, first_local, length in runs
        ]


def find_layout(tensors: Mapping[str, Any], num_blocks: int, block_size: int) -> tuple[Layout, list[Region]]:
    """Return the layout of an engine's KV tensors, by layer, and a region each. Layers that share one count once.

    Raises `KVError` for tensors that are not of one layout, or whose blocks are not whole pieces of memory.
    """
    different = list({tensor.data_ptr(): tensor for tensor in tensors.values()}.values())
    if not different:
        raise KVError("this model has no KV cache that could be moved")
    layouts = {_layout_of(tensor, num_blocks, block_size, len(different)) for tensor in different}
    if len(layouts) > 1:
        raise KVError(f"its layers keep KV in {len(layouts)} different layouts; only models with one can move KV here")
    return layouts.pop(), [_region_of(tensor) for tensor in different]


def _layout_of(tensor: Any, num_blocks: int, block_size: int, num_layers: int) -> Layout:
    shape, strides, size = tuple(tensor.shape), tensor.stride(), tensor.element_size()
    axis = _block_axis(shape, num_blocks)
    per_block = shape[axis] // num_blocks  # a kernel's blocks may be smaller than the engine's
    outer = [each for each in range(len(shape)) if strides[each] > strides[axis]]
    inner = [each for each in range(len(shape)) if each != axis and each not in outer]
    order = sorted(inner, key=lambda each: -strides[each])
    num_inner = math.prod(shape[each] for each in inner)
    is_whole = num_inner == 1 + sum((shape[each] - 1) * strides[each] for each in inner)
    if not is_whole or (per_block > 1 and strides[axis] != num_inner):
        raise KVError(f"KV of shape {shape} with strides {strides} has blocks that are not whole pieces of memory")
    pieces = [0]
    for each in sorted(outer, key=lambda each: -strides[each]):
        pieces = [first + index * strides[each] * size for first in pieces for index in range(shape[each])]
    return Layout(
        num_layers=num_layers,
        pieces=tuple(pieces),
        piece_bytes=num_inner * per_block * size,
        block_stride=strides[axis] * per_block * size,
        shape=f"{block_size} tokens of {tensor.dtype}, {per_block}x{tuple((each, shape[each]) for each in order)}",
    )


def _block_axis(shape: tuple[int, ...], num_blocks: int) -> int:
    """Blocks are counted along the first axis, or along the second where keys and values are apart."""
    for axis in range(min(2, len(shape))):
        if shape[axis] >= num_blocks and shape[axis] % num_blocks == 0:
            return axis
    raise KVError(f"KV of shape {shape} has no axis of {num_blocks} blocks")


def _region_of(tensor: Any) -> Region:
    span = 1 + sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
    device = tensor.device
    index = (device.index or 0) if device.type == "cuda" else None
    return Region(address=tensor.data_ptr(), size=span * tensor.element_size(), device=index)


def _runs(remote: Sequence[int], local: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (remote, local, length) of the stretches in which both count up by one."""
    runs: list[tuple[int, int, int]] = []
    for theirs, ours in zip(remote, local, strict=True):
        if runs and (theirs, ours) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((theirs, ours, 1))
    return runs
