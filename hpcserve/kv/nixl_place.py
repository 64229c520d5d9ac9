"""How a NIXL endpoint describes itself, and which ranges one transfer can take together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from hpcserve.kv.transport import Copy, Region


class NixlPlace(msgspec.Struct, frozen=True, array_like=True, tag="nixl"):
    """An agent, its process and its regions."""

    name: str
    metadata: bytes
    host: str
    pid: int
    started: int
    addresses: tuple[int, ...]
    sizes: tuple[int, ...]
    devices: tuple[int | None, ...]


def by_kind(
    copies: Iterable[Copy], ours: Sequence[Region], place: NixlPlace
) -> dict[tuple[str, str], list[tuple[Copy, int, int]]]:
    """Group by the kinds of memory at both ends, which one NIXL transfer cannot mix; with the devices."""
    groups: dict[tuple[str, str], list[tuple[Copy, int, int]]] = {}
    for copy in copies:
        local, remote = ours[copy.local_region].device, place.devices[copy.remote_region]
        groups.setdefault((memory_kind(local), memory_kind(remote)), []).append((copy, local or 0, remote or 0))
    return groups


def memory_kind(device: int | None) -> str:
    """Return NIXL's name for the memory of a device, or of the host."""
    return "DRAM" if device is None else "VRAM"
