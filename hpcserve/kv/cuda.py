"""The few calls of CUDA's driver that staging needs, through ctypes: neither torch nor a toolkit has to be there."""

from __future__ import annotations

import ctypes
from functools import cache

from hpcserve.errors import KVError

_NON_BLOCKING, _NO_TIMING, _NOT_READY = 1, 2, 600


@cache
def _driver() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    if code := library.cuInit(0):
        raise OSError(f"cuInit answers {code}")
    return library


def has_cuda() -> bool:
    """Whether this process can use a GPU."""
    try:
        count = ctypes.c_int()
        return _driver().cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


class CudaStream:
    """Copies between pinned host memory and one device, in order, while the host goes on.

    It works in the device's primary context, which is the one of torch. All methods raise `KVError`.
    """

    def __init__(self, device: int) -> None:
        self._device = ctypes.c_int()
        self._context, self._stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), device)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)

    def pinned(self, size: int) -> int:
        """Allocate `size` bytes of host memory that the device reads and writes directly; return its address."""
        address = ctypes.c_void_p()
        self._use()
        self._call("cuMemAllocHost_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return int(address.value or 0)

    def pin(self, address: int, size: int) -> None:
        """Make memory that is there already readable and writable for the device."""
        self._use()
        self._call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size), 1)

    def to_host(self, host: int, device: int, size: int) -> None:
        """Begin to copy from the device. It sees what was written before by kernels that have ended."""
        self._use()
        arguments = (ctypes.c_void_p(host), ctypes.c_uint64(device), ctypes.c_size_t(size), self._stream)
        self._call("cuMemcpyDtoHAsync_v2", *arguments)

    def to_device(self, device: int, host: int, size: int) -> None:
        """Begin to copy to the device."""
        self._use()
        arguments = (ctypes.c_uint64(device), ctypes.c_void_p(host), ctypes.c_size_t(size), self._stream)
        self._call("cuMemcpyHtoDAsync_v2", *arguments)

    def mark(self) -> ctypes.c_void_p:
        """Return an event for `is_reached`: everything that has begun until now."""
        event = ctypes.c_void_p()
        self._use()
        self._call("cuEventCreate", ctypes.byref(event), _NO_TIMING)
        self._call("cuEventRecord", event, self._stream)
        return event

    def is_reached(self, event: ctypes.c_void_p) -> bool:
        """Whether all that is over; an event that was reached is not asked for again."""
        code = _driver().cuEventQuery(event)
        if code == _NOT_READY:
            return False
        if code:
            raise KVError(f"CUDA: a copy failed with error {code}")
        self._call("cuEventDestroy_v2", event)
        return True

    def close(self, pinned: int) -> None:
        """Wait for what has begun, and free the stream, and the host memory unless it is 0."""
        self._use()
        self._call("cuStreamSynchronize", self._stream)
        if pinned:
            self._call("cuMemFreeHost", ctypes.c_void_p(pinned))
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _use(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    @staticmethod
    def _call(name: str, *arguments: object) -> None:
        try:
            code = getattr(_driver(), name)(*arguments)
        except OSError as err:
            raise KVError(f"no CUDA driver here: {err}") from err
        if code:
            raise KVError(f"CUDA: {name} answers error {code}")
