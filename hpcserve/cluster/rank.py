"""One rank of an allocation: reports to the head, holds at most one agent at a time, starts and ends it when told to.

Rank 0 is none of these: it has the head and the driver. A rank stays when its agent dies, so that it can be given the
replacement; it ends when the head says so, or cannot be heard for half a minute. `python -m hpcserve.cluster.rank`
runs one by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from hpcserve.cluster import world
from hpcserve.cluster.child import AgentInside, AgentProcess, Child, agent_command
from hpcserve.cluster.launcher import Launch, node_name, num_threads, read_devices, read_launch, without_launcher
from hpcserve.cluster.rank_protocol import Ended, Hello, Order, Running, Signal, Started, read_rendezvous
from hpcserve.comm.channel import Channel, connect
from hpcserve.comm.tls import Identity
from hpcserve.errors import BadRequest, ConfigError, HpcserveError
from hpcserve.observability.logging import configure_logging
from hpcserve.state import StateDir

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_FLUSH_S = 0.3
_LOOK_S = 1.0  # at who the parent is
_CONNECT_TIMEOUT_S = 10.0
_FIRST_WAIT_S = 1800.0  # rank 0 reads and sorts all of its input before it starts a head
_LOST_S = 30.0  # without a head; nobody starts another one on the same ranks
_DRAIN_S = 25.0  # for an agent whose rank must end; then it is killed


class Rank:
    """The life of one rank. `run` is all of it."""

    def __init__(
        self, state_dir: Path, launch: Launch, *, first_wait_s: float = _FIRST_WAIT_S, lost_s: float = _LOST_S
    ) -> None:
        self._state = StateDir(state_dir)
        self._launch = launch
        self._first_wait_s = first_wait_s
        self._lost_s = lost_s
        self._has_joined = False
        self._heard_at = time.monotonic()
        self._leaving = asyncio.Event()
        self._channel: Channel | None = None
        self._agent: _Agent | None = None
        self._last_end: Ended | None = None

    def leave(self) -> None:
        """End `run` soon, the agent in good order before; safe to call twice, and from a signal handler of the loop."""
        if self._agent is not None:
            self._agent.end("kill" if self._leaving.is_set() else "drain")
        self._leaving.set()

    async def run(self) -> int:
        """Serve until told to leave, or until there is no head; return the exit code. Nothing is left then."""
        watching = asyncio.create_task(self._leave_with_launcher(), name="watch the launcher")
        try:
            while not self._leaving.is_set():
                if not await self._serve_once():
                    return 1
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._leaving.wait(), _RETRY_S)
            return 0
        finally:
            watching.cancel()
            await self._end_agent()
            if self._channel is not None:
                await self._channel.flush(_FLUSH_S)
                self._channel.close()

    async def _serve_once(self) -> bool:
        """Report and serve for as long as the connection lasts; False when the head was lost for too long."""
        found = read_rendezvous(self._state.path)
        if found is not None and found.label == self._launch.label:
            if found.address is None:
                self._leaving.set()
                return True
            try:
                await self._serve(found.address)
            except HpcserveError as err:
                log.info("rank %d is not heard: %s", self._launch.rank, err.message)
            except OSError as err:  # the certificate is being replaced
                log.info("rank %d has no identity: %s", self._launch.rank, err)
        bound_s = self._lost_s if self._has_joined else self._first_wait_s
        if time.monotonic() - self._heard_at > bound_s and not self._leaving.is_set():
            log.error("rank %d: no head for %g s: leaving", self._launch.rank, bound_s)
            return False
        return True

    async def _serve(self, address: str) -> None:
        identity = Identity(self._state.tls_cert, self._state.tls_key)
        channel = await connect(address, identity, timeout_s=_CONNECT_TIMEOUT_S)
        running = asyncio.create_task(channel.run(self))
        try:
            await channel.call("join", self._hello(), type(None), timeout_s=_CONNECT_TIMEOUT_S)
            self._channel, self._has_joined, self._last_end = channel, True, None
            leaving = asyncio.create_task(self._leaving.wait())
            await asyncio.wait((running, leaving), return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            if self._leaving.is_set():
                await self._end_agent()
            await channel.flush(_FLUSH_S)
        finally:
            self._channel, self._heard_at = None, time.monotonic()
            channel.close()
            with suppress(asyncio.CancelledError):
                await running

    async def _leave_with_launcher(self) -> None:
        """Leave when `mpirun` or Slurm's step daemon is gone: nobody else would end this process.

        The signal that the system has for this comes too early where the thread ends that started the process.
        """
        launcher = os.getppid()
        while not self._leaving.is_set():
            await asyncio.sleep(_LOOK_S)
            if os.getppid() != launcher:
                log.error("rank %d: its launcher is gone: leaving", self._launch.rank)
                self.leave()

    def _hello(self) -> Hello:
        devices = read_devices()
        return Hello(
            rank=self._launch.rank,
            node=node_name(),
            host=os.uname().nodename,
            pid=os.getpid(),
            device_variable=devices.variable,
            devices=devices.ids,
            has_own_devices=devices.is_own,
            running=self._agent.running if self._agent else None,
            ended=self._last_end,
        )

    async def on_call(self, op: str, body: msgspec.Raw) -> object:
        """Start an agent."""
        if op != "start":
            raise BadRequest(f"a rank knows no call {op!r}")
        return await self._start(msgspec.msgpack.decode(body, type=Order))

    def on_message(self, op: str, body: msgspec.Raw) -> None:
        """End the agent, or leave."""
        if op == "end":
            told = msgspec.msgpack.decode(body, type=Signal)
            if self._agent is not None and self._agent.running.job_id == told.job_id:
                self._agent.end(told.how)
        elif op == "leave":
            if self._agent is not None:
                self._agent.end("drain" if self._agent.is_inside else "kill")
            self._leaving.set()
        else:
            log.warning("ignored a message %r", op)

    def on_close(self) -> None:
        """The connection is over; `_serve` sees it too."""

    async def _start(self, order: Order) -> Started:
        if self._agent is not None or self._leaving.is_set():
            raise BadRequest(f"rank {self._launch.rank} is not free for {order.job_id}")
        child = await _start_child(order)
        running = Running(job_id=order.job_id, started_at=time.time())
        self._agent = _Agent(child, running, is_inside=order.is_inside)
        self._agent.ended.add_done_callback(partial(self._tell_end, order.job_id))
        return Started(pid=child.pid, started_at=self._agent.running.started_at)

    def _tell_end(self, job_id: str, ended: asyncio.Future[str]) -> None:
        self._agent = None
        self._last_end = Ended(job_id=job_id, reason="CANCELLED" if ended.cancelled() else ended.result())
        if self._channel is not None:
            self._channel.send("ended", self._last_end)

    async def _end_agent(self) -> None:
        if (agent := self._agent) is None:
            return
        agent.end("drain")
        _, late = await asyncio.wait([agent.ended], timeout=_DRAIN_S)
        if late:
            agent.end("kill")
            await asyncio.wait([agent.ended], timeout=_DRAIN_S)


class _Agent:
    """The agent that the rank holds now."""

    def __init__(self, child: Child, running: Running, *, is_inside: bool) -> None:
        self._child = child
        self.running = running
        self.is_inside = is_inside  # the rank's own process
        self.ended = asyncio.ensure_future(child.wait())
        self._was_asked = False

    def end(self, how: str) -> None:
        if how == "kill":
            self._child.kill()
        elif not self._was_asked:
            self._was_asked = True
            self._child.drain()


async def _start_child(order: Order) -> Child:
    threads = order.threads or num_threads(order.workers_on_node)
    if order.is_inside:
        given = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))} | order.environment
        return await AgentInside.start(order.args, given, Path(order.log))
    environ = {"OMP_NUM_THREADS": str(threads)} | without_launcher(os.environ) | order.environment
    return AgentProcess.start(agent_command(order.module, order.args), environ, Path(order.log))


def run_rank(state_dir: Path, launch: Launch, *, in_world: bool = False) -> int:
    """Run one rank to its end and return its exit code. SIGTERM ends it, the agent in good order before.

    `in_world`: as a process of MPI, with the agent inside.
    """
    if not in_world:
        return _run(state_dir, launch)
    with world.in_world():
        return _run(state_dir, launch)


def _run(state_dir: Path, launch: Launch) -> int:

    import uvloop

    async def live() -> int:
        rank = Rank(state_dir, launch)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, rank.leave)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, lambda: None)  # rank 0 hears them as well, and says what they mean
        return await rank.run()

    return uvloop.run(live())


def main(argv: list[str] | None = None) -> int:
    """Run one rank of the launcher that started this process."""
    parser = argparse.ArgumentParser(prog="hpcserve.cluster.rank", description="One rank of an allocation.")
    parser.add_argument("--state-dir", type=Path, required=True)
    args = parser.parse_args(argv)
    configure_logging("info", "text")
    try:
        launch = read_launch()
        if launch is None:
            raise ConfigError("no launcher started this process: use mpirun or srun")
        return run_rank(args.state_dir, launch)
    except HpcserveError as err:
        log.error("%s", err.message)
        return err.exit_code


if __name__ == "__main__":
    sys.exit(main())
