"""The process that runs batches: `python -m hpcserve.serve.batch_runner`. Started by the head when there are some.

It ends when there is nothing to do, and with its head: what is unfinished the next one goes on with.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcserve.batch import Client, Endpoint
from hpcserve.batch.uploaded import BatchRunner, Target
from hpcserve.config.models import Config
from hpcserve.errors import DeploymentError, HpcserveError
from hpcserve.frontend.exposure import auth_required
from hpcserve.garbage import collect_rarely
from hpcserve.jobs import JobStore, jobs_directory
from hpcserve.keys import KeyFile
from hpcserve.observability.logging import configure_logging
from hpcserve.serve.open_files import raise_open_files_limit
from hpcserve.serve.watch import fetch_status
from hpcserve.state import StateDir
from hpcserve.types import Phase, Status

log = logging.getLogger("hpcserve.batches")

_IDLE_S = 30.0
_WATCH_S = 0.5
_AHEAD = 1.25  # of what engines run at once: the next ones wait in the router's queue already
_MOST_AT_ONCE = 1024
_SEQS = 256  # of an engine that does not say how many it runs at once


async def run_batches(config: Config, state: StateDir, store: JobStore) -> None:
    """Run what there is until nothing is left, SIGTERM comes, or the head has gone."""
    head = os.getppid()
    stopping = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stopping.set)
    keys = KeyFile(state) if auth_required(config, config.cluster.kind, config.frontend.host) else None
    runner = BatchRunner(store, config.batches, lambda: find_target(config, state), keys)
    running = asyncio.create_task(runner.run(_IDLE_S))
    collect_rarely()
    while not running.done() and not stopping.is_set() and os.getppid() == head:
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait((running, stopped), timeout=_WATCH_S, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def find_target(config: Config, state: StateDir) -> Target:
    """Return the endpoint of a deployment that serves. Raises `DeploymentError`."""
    status = await fetch_status(state)
    if status.phase is not Phase.SERVING or not (status.endpoint or status.unix_socket):
        raise DeploymentError(f"the deployment is {status.phase}")
    endpoint = Endpoint(
        url=status.endpoint or "http://localhost/v1",
        key=state.read_key(),
        unix_socket=status.unix_socket,
        ca_file=config.frontend.tls_cert,
    )
    async with Client(endpoint) as client:
        models = await client.models()
    if not models:
        raise DeploymentError("the deployment serves no model yet")
    return Target(endpoint, models, max(1, _window(status) // config.batches.max_active))


def _window(status: Status) -> int:
    """Return how many requests keep every engine busy."""
    engines = [each.engine for each in status.workers if each.engine is not None and each.role.decodes]
    at_once = sum(engine.max_num_seqs or _SEQS for engine in engines)
    return max(16, min(int(at_once * _AHEAD), _MOST_AT_ONCE))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other runner has this store: one of a head that has just gone ends soon."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def main(argv: list[str] | None = None) -> int:
    """Run batches and return the exit code."""
    import uvloop

    parser = argparse.ArgumentParser(prog="hpcserve.serve.batch_runner", description="Runs a deployment's batches.")
    parser.add_argument("--state-dir", type=Path, required=True)
    state = StateDir(parser.parse_args(argv).state_dir)
    config = state.read_config()
    configure_logging(config.log_level, config.log_format)
    raise_open_files_limit()
    try:
        store = JobStore(jobs_directory(config, state))
        with _alone(store.directory / "runner.lock"):
            uvloop.run(run_batches(config, state, store))
    except HpcserveError as err:
        log.error("%s", err.message)
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
