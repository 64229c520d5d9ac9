"""`python -m hpcserve.agent`: the command in a Slurm job, or a local process, that becomes one worker.

dask-jobqueue writes the command line for a Dask worker; the options of it that mean nothing here are taken and ignored.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcserve.agent.membership import DASK_CONFIG
from hpcserve.agent.node import NodeAgent, NodeSpec
from hpcserve.agent.scratch import scratch_directory
from hpcserve.comm.address import announce_host
from hpcserve.errors import HpcserveError
from hpcserve.observability.logging import configure_logging
from hpcserve.state import StateDir
from hpcserve.types import Role, WorkerId

log = logging.getLogger("hpcserve.agent")

_IGNORED = ("--nthreads", "--memory-limit", "--death-timeout", "--local-directory", "--interface", "--protocol")


def main(argv: list[str] | None = None) -> int:
    """Run one node agent to its end and return its exit code."""
    import uvloop

    async def live() -> None:
        with opened_agent(argv) as agent:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, _stop_or_die, agent)
            loop.add_signal_handler(signal.SIGINT, agent.stop)
            await agent.run()

    try:
        uvloop.run(live())
    except HpcserveError as err:
        log.error("%s", err.message)
        return err.exit_code
    return 0


@contextmanager
def opened_agent(argv: list[str] | None) -> Iterator[NodeAgent]:
    """Make the agent that a command line means, on the running loop; its scratch directory is removed in the end.

    Raises `HpcserveError` where it cannot be made.
    """
    import dask

    args = _parse(argv)
    state = StateDir(args.state_dir)
    config = state.read_config()
    configure_logging(config.log_level, config.log_format)
    dask.config.set(DASK_CONFIG)
    with scratch_directory(config, args.name) as scratch:
        spec = NodeSpec(
            worker=WorkerId(args.name),
            pool=args.pool,
            role=Role(args.role),
            host=announce_host(config),
            scratch=scratch,
        )
        yield NodeAgent(spec, config, state)


def _stop_or_die(agent: NodeAgent) -> None:
    """Drain on the first SIGTERM, end on the second."""
    agent.stop()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 143)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hpcserve.agent", description="One hpcserve worker.")
    parser.add_argument("scheduler", help="address at submission; the state directory names the one to use")
    parser.add_argument("--name", required=True, help="worker id")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--pool", required=True)
    parser.add_argument("--role", required=True, choices=[role.value for role in Role])
    for option in _IGNORED:
        parser.add_argument(option, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(exit_code)  # all is stopped and removed; taking down torch and UCX in order would cost seconds more
