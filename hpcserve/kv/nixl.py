"""KV over NIXL: `NixlTransport`, one-sided reads over UCX. vLLM's own NIXL connector does not come through here.

No progress thread of NIXL's is used: on CPUs it polls without pause. UCX has neither login nor encryption: who holds
a description can read the memory that it describes.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from hpcserve.errors import KVError
from hpcserve.kv.cuda import has_cuda
from hpcserve.kv.memory import Range, check
from hpcserve.kv.messages import join
from hpcserve.kv.nixl_library import load_nixl
from hpcserve.kv.nixl_place import NixlPlace, by_kind, memory_kind
from hpcserve.kv.peers import is_gone, start_time, this_host
from hpcserve.kv.progress import ThreadedTransport
from hpcserve.kv.transport import Abilities, Copy, Finished, Region

log = logging.getLogger(__name__)

_SLOWEST_BYTES_PER_S = 100e6  # a long pull may take longer than a peer may be silent
_LOOK_EVERY_S = 0.25
_LAST_BREATH_S = 1.0  # for UCX to see that a peer is dead, before the agent is closed for it
_NO_VRAM = "this UCX has no CUDA: device memory cannot be registered"


class NixlTransport(ThreadedTransport):
    """One NIXL agent of this process."""

    def __init__(self, *, timeout_s: float = 30.0, strict: bool = False) -> None:
        api = load_nixl()
        abilities = Abilities(path=f"NIXL {_version()} over UCX", is_cuda_direct=has_cuda())
        super().__init__("nixl", abilities, lambda: NixlCore(api, timeout_s))


@dataclass
class _Pull:
    id: int
    place: NixlPlace
    note: bytes
    deadline: float
    started: float
    handles: list[Any] = field(default_factory=list)
    error: str | None = None
    looked_at: float = 0.0


class NixlCore:
    """`Core` over one agent at a time.

    NIXL cannot end a transfer. One that is released, or whose peer is forgotten, still writes when a peer that was
    silent wakes up, where the fabric has the peer's processor send (TCP). So when a peer is silent for too long, the
    agent is closed, which ends all that is under way, and a new one takes its place.
    """

    def __init__(self, api: Any, timeout_s: float) -> None:
        self.finished: deque[Finished] = deque()
        self.notes: deque[bytes] = deque()
        self.description = b""
        self._api = api
        self._timeout_s = timeout_s
        self._agent: Any = None
        self._name = ""
        self._known: set[str] = set()
        self._pulls: dict[int, _Pull] = {}
        self._regions: Sequence[Region] = ()
        self._registered: list[Any] = []

    def open(self, regions: Sequence[Region]) -> None:
        """See `Core`."""
        self._regions = regions
        self._name = f"hpcserve-{uuid.uuid4().hex}"
        self._known = {self._name}  # NIXL knows its own agent
        try:
            config = self._api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._agent = self._api.nixl_agent(self._name, config)
        except Exception as err:
            raise KVError(f"NIXL does not start: {err!r}") from err
        for kind in ("DRAM", "VRAM"):
            rows = [
                (item.address, item.size, item.device or 0, "") for item in regions if memory_kind(item.device) == kind
            ]
            if rows:
                self._register(rows, kind)
        place = NixlPlace(
            name=self._name,
            metadata=self._agent.get_agent_metadata(),
            host=this_host(),
            pid=os.getpid(),
            started=start_time(os.getpid()) or 0,
            addresses=tuple(region.address for region in regions),
            sizes=tuple(region.size for region in regions),
            devices=tuple(region.device for region in regions),
        )
        self.description = msgspec.msgpack.encode(place)

    def begin(self, pull: int, peer: bytes, copies: Sequence[Copy], note: bytes) -> None:
        """See `Core`."""
        now = time.monotonic()
        limit_s = self._timeout_s + sum(copy.size for copy in copies) / _SLOWEST_BYTES_PER_S
        try:
            place = self._find(peer)
        except KVError as err:
            self.finished.append(Finished(pull, err.message))
            return
        going = self._pulls[pull] = _Pull(pull, place, note, now + limit_s, now)
        try:
            check((Range(copy.local_region, copy.local_offset, copy.size) for copy in copies), self._sizes)
            check((Range(copy.remote_region, copy.remote_offset, copy.size) for copy in copies), place.sizes)
            self._start(going, copies)
        except KVError as err:
            going.error = err.message
        except Exception as err:  # noqa: BLE001 - the edge: NIXL's errors have no common type
            going.error = f"NIXL: {err!r}"

    def stop(self, pull: int) -> None:
        """See `Core`."""
        going = self._pulls.get(pull)
        if going is not None:
            going.error = going.error or "cancelled"

    def tell(self, peer: bytes, note: bytes) -> None:
        """See `Core`."""
        try:
            self._tell(self._find(peer), note)
        except KVError as err:
            log.warning("a note has nobody to go to: %s", err.message)

    def step(self, now: float) -> bool:
        """See `Core`."""
        moved = False
        for notes in self._agent.get_new_notifs().values():
            self.notes.extend(notes)
            moved = True
        for pull in list(self._pulls.values()):
            moved |= self._move(pull, now)
        if any(pull.error is not None and now > pull.deadline for pull in self._pulls.values()):
            self._start_anew()
            moved = True
        return moved

    def close(self) -> None:
        """See `Core`."""
        deadline = time.monotonic() + self._timeout_s
        for pull in self._pulls.values():
            pull.error = pull.error or "the transport is closed"
        while self._pulls and time.monotonic() < deadline:
            if not self.step(time.monotonic()):
                time.sleep(1e-3)
        for pull in self._pulls.values():
            self.finished.append(Finished(pull.id, pull.error))
        self._agent.get_new_notifs()  # notes that were sent last leave
        self._close_agent()

    def _start_anew(self) -> None:
        log.error("NIXL: a peer was silent for too long: a new agent, and all pulls that were under way have failed")
        pulls, self._pulls = self._pulls, {}
        for pull in pulls.values():
            pull.handles.clear()
        self._close_agent()
        self.open(self._regions)
        for pull in pulls.values():
            self._tell(pull.place, pull.note)
            self.finished.append(Finished(pull.id, pull.error or "another peer was silent, and pulls cannot be ended"))

    def _close_agent(self) -> None:
        for pull in self._pulls.values():
            pull.handles.clear()
        for name in self._known - {self._name}:
            with suppress(Exception):  # one that is gone already
                self._agent.remove_remote_agent(name)
        for registered in self._registered:
            self._agent.deregister_memory(registered)
        self._registered.clear()
        self._agent.agent = self._agent = None  # one that is alive when the interpreter ends crashes it

    @property
    def _sizes(self) -> list[int]:
        return [region.size for region in self._regions]

    def _register(self, rows: list[tuple[int, int, int, str]], kind: str) -> None:
        try:
            self._registered.append(self._agent.register_memory(rows, kind, backends=["UCX"]))
        except Exception as err:
            what = _NO_VRAM if kind == "VRAM" else "the memory cannot be registered"
            raise KVError(f"NIXL: {what} ({err!r})") from err

    def _find(self, peer: bytes) -> NixlPlace:
        try:
            place = msgspec.msgpack.decode(peer, type=NixlPlace)
        except msgspec.MsgspecError as err:
            raise KVError(f"this does not describe a NIXL endpoint: {err}") from err
        self._connect(place)
        return place

    def _connect(self, place: NixlPlace) -> None:
        if place.name in self._known:
            return
        if is_gone(place):
            raise KVError(f"process {place.pid} is dead")
        try:
            self._agent.add_remote_agent(place.metadata)
        except Exception as err:
            raise KVError(f"NIXL does not take the description: {err!r}") from err
        self._known.add(place.name)

    def _start(self, pull: _Pull, copies: Sequence[Copy]) -> None:
        """Begin one transfer for each pair of memory kinds."""
        for kinds, group in by_kind(join(copies), self._regions, pull.place).items():
            ours = [
                (self._regions[copy.local_region].address + copy.local_offset, copy.size, device)
                for copy, device, _ in group
            ]
            theirs = [
                (pull.place.addresses[copy.remote_region] + copy.remote_offset, copy.size, device)
                for copy, _, device in group
            ]
            agent = self._agent
            handle = agent.initialize_xfer(
                "READ", agent.get_xfer_descs(ours, kinds[0]), agent.get_xfer_descs(theirs, kinds[1]), pull.place.name
            )
            pull.handles.append(handle)
            if agent.transfer(handle) == "ERR":
                raise KVError("NIXL cannot start the transfer")

    def _move(self, pull: _Pull, now: float) -> bool:
        num_handles = len(pull.handles)
        pull.handles = [handle for handle in pull.handles if not self._is_over(pull, handle)]
        if pull.handles and pull.error is None:
            self._watch(pull, now)
        if pull.handles:
            return len(pull.handles) < num_handles
        del self._pulls[pull.id]
        if pull.error is None and now > pull.deadline:
            pull.error = f"took longer than {pull.deadline - pull.started:g} s"
        self._tell(pull.place, pull.note)
        self.finished.append(Finished(pull.id, pull.error))
        return True

    def _is_over(self, pull: _Pull, handle: Any) -> bool:
        try:
            state = self._agent.check_xfer_state(handle)
        except Exception as err:  # noqa: BLE001 - the edge: NIXL's errors have no common type
            state, pull.error = "ERR", pull.error or f"NIXL: {err!r}"
        if state == "PROC":
            return False
        if state == "ERR":
            pull.error = pull.error or "NIXL: the transfer failed"
            self._known.discard(pull.place.name)
        with suppress(Exception):  # an ended one that cannot be released holds nothing of ours
            self._agent.release_xfer_handle(handle)
        return True

    def _watch(self, pull: _Pull, now: float) -> None:
        if now > pull.deadline:
            pull.error = f"the peer on {pull.place.host} was silent for {pull.deadline - pull.started:.1f} s"
        elif now - max(pull.looked_at, pull.started) > _LOOK_EVERY_S:
            pull.looked_at = now
            if is_gone(pull.place):
                pull.error, pull.deadline = f"process {pull.place.pid} is dead", now + _LAST_BREATH_S
        if pull.error is not None:
            log.warning("pull %d: %s", pull.id, pull.error)

    def _tell(self, place: NixlPlace, note: bytes) -> None:
        if note and not is_gone(place):
            try:
                self._connect(place)
                self._agent.send_notif(place.name, note)
            except Exception as err:  # noqa: BLE001 - best effort, by contract
                log.warning("a note did not reach process %d: %r", place.pid, err)


def _version() -> str:
    try:
        return version("nixl")
    except PackageNotFoundError:
        return "?"
