"""Copies between registered memory and a staging buffer: at once in the host's, in order on a stream for a GPU's."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from hpcserve.kv.cuda import CudaStream
from hpcserve.kv.memory import Range
from hpcserve.kv.transport import Region

Marks = list[tuple[CudaStream, ctypes.c_void_p]]
"""What tells when copies are over."""


class RangeCopies:
    """For all regions of one endpoint. Raises `KVError` where CUDA fails."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = regions
        self.streams = {
            device: CudaStream(device)
            for device in sorted({item.device for item in regions if item.device is not None})
        }

    def gather(self, ranges: Sequence[Range], stage: int) -> Marks:
        """Begin to copy ranges to the address `stage`, one after the other."""
        for item, address, at in self._places(ranges, stage):
            device = self._regions[item.region].device
            if device is None:
                ctypes.memmove(at, address, item.size)
            else:
                self.streams[device].to_host(at, address, item.size)
        return self._marks(ranges)

    def scatter(self, ranges: Sequence[Range], stage: int) -> Marks:
        """Begin to copy from the address `stage` to ranges."""
        for item, address, at in self._places(ranges, stage):
            device = self._regions[item.region].device
            if device is None:
                ctypes.memmove(address, at, item.size)
            else:
                self.streams[device].to_device(address, at, item.size)
        return self._marks(ranges)

    def _places(self, ranges: Sequence[Range], stage: int) -> list[tuple[Range, int, int]]:
        places = []
        for item in ranges:
            places.append((item, self._regions[item.region].address + item.offset, stage))
            stage += item.size
        return places

    def _marks(self, ranges: Sequence[Range]) -> Marks:
        devices = {self._regions[item.region].device for item in ranges}
        return [(self.streams[device], self.streams[device].mark()) for device in devices if device is not None]


def still_running(marks: Marks) -> Marks:
    """Return those whose copies are not over."""
    return [(stream, event) for stream, event in marks if not stream.is_reached(event)]
