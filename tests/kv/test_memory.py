"""Ranges are checked before memory is touched, and several make one message."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from hpcserve.errors import KVError
from hpcserve.kv.interface import interface_name
from hpcserve.kv.memory import HostMemory, Range, check
from hpcserve.kv.messages import cut
from hpcserve.kv.mpi_wire import Ask, decode_control, encode, pack_ranges, read_place, unpack_ranges
from hpcserve.kv.transport import Copy, Region


@pytest.mark.parametrize("bad", [(2, 0, 1), (-1, 0, 1), (0, 100, 1), (0, 99, 2), (0, -1, 1), (0, 0, -1), (1, 0, 2**63)])
def test_ranges_outside_of_regions_are_refused(bad: tuple[int, int, int]) -> None:
    check([Range(0, 0, 100), Range(1, 5, 0)], (100, 5))
    with pytest.raises(KVError, match="region"):
        check([Range(0, 0, 1), Range(*bad)], (100, 5))


def test_several_ranges_are_one_message_and_one_range_stays_where_it_is() -> None:
    source, target = np.arange(100, dtype=np.uint8), np.zeros(100, np.uint8)
    here = HostMemory([Region(source.ctypes.data, 100)])
    there = HostMemory([Region(target.ctypes.data, 100)])
    assert here.load([Range(0, 7, 50)]).address() == source.ctypes.data + 7

    outgoing = here.load([Range(0, 10, 5), Range(0, 90, 10)])
    incoming = there.store([Range(0, 0, 10), Range(0, 50, 5)])
    ctypes.memmove(incoming.room, outgoing.address(), 15)
    assert not target.any(), "nothing is there before it is committed"
    incoming.commit()
    assert incoming.is_stored()
    assert target[:10].tolist() == [10, 11, 12, 13, 14, 90, 91, 92, 93, 94]
    assert target[50:55].tolist() == [95, 96, 97, 98, 99]


def test_what_is_asked_for_survives_the_wire() -> None:
    messages = cut([Copy(0, 1 << 40, 0, 0, 1 << 20), Copy(1, 3, 0, 5, 7), Copy(1, 13, 0, 25, 7)])
    ask = Ask(1, 2, 3, 4, *pack_ranges(messages))
    again = decode_control(encode(ask))
    assert isinstance(again, Ask)
    assert [tuple(ranges) for ranges in unpack_ranges(again)] == [message.remote for message in messages]


@pytest.mark.parametrize(("counts", "ranges"), [(b"abc", b""), (b"\1\0\0\0", b"x" * 8), (b"\0\0\0\0", b"")])
def test_ranges_that_do_not_add_up_are_refused(counts: bytes, ranges: bytes) -> None:
    with pytest.raises(KVError):
        unpack_ranges(Ask(1, 2, 3, 4, counts, ranges))


@pytest.mark.parametrize("junk", [b"", b"\x90", b"junk", encode(("mpi", 1)), encode(("nixl", "a", b"", "h", 1, 2))])
def test_what_describes_no_endpoint_is_refused(junk: bytes) -> None:
    with pytest.raises(KVError, match="does not describe"):
        read_place(junk)


def test_interfaces_are_named_by_what_chooses_them() -> None:
    environ = {"UCX_NET_DEVICES": "mlx5_0:1", "OMPI_MCA_btl": "self,tcp"}
    assert interface_name("nixl", is_same_node=False, environ=environ) == "UCX_NET_DEVICES=mlx5_0:1"
    assert (
        interface_name("mpi", is_same_node=False, environ=environ) == "OMPI_MCA_btl=self,tcp, UCX_NET_DEVICES=mlx5_0:1"
    )
    assert interface_name("nixl", is_same_node=True, environ={}) == "shared memory"
    assert interface_name("mpi", is_same_node=False, environ={}) == "the interface that the library chose"
