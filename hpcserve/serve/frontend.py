"""The frontend process: `python -m hpcserve.serve.frontend`. HTTP in, the head asked, agents streamed from."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiohttp import web

from hpcserve.comm.protocol import FrontendInfo
from hpcserve.comm.tls import Identity
from hpcserve.config.models import Config
from hpcserve.dispatch import Dispatcher
from hpcserve.dispatch.agents import AgentPool
from hpcserve.dispatch.head import HeadLink
from hpcserve.errors import HpcserveError
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.access.shared_limits import SharedMeter
from hpcserve.frontend.access.usage_recorder import UsageRecorder
from hpcserve.frontend.app import make_app
from hpcserve.frontend.exposure import auth_required
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.frontend.server.certificate import server_tls
from hpcserve.frontend.server.site import Site, start_site
from hpcserve.garbage import collect_rarely
from hpcserve.jobs import JobStore, jobs_directory
from hpcserve.keys import KeyFile
from hpcserve.observability.logging import configure_logging
from hpcserve.observability.metrics import DispatchCounts, ServiceMetrics
from hpcserve.observability.tracing import Tracer, open_tracer
from hpcserve.serve.listening import endpoint_url
from hpcserve.serve.open_files import raise_open_files_limit
from hpcserve.state import StateDir
from hpcserve.usage import UsageFile

log = logging.getLogger("hpcserve.frontend")

_HEAD_TIMEOUT_S = 10.0
_LOOK_S = 1.0  # at whether there is a head


async def run_frontend(config: Config, state: StateDir, index: int = 0, port: int | None = None) -> None:
    """Serve HTTP until SIGTERM; then take nothing new and let running requests end within the drain time."""
    stopping = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stopping.set)
    async with AsyncExitStack() as stack:
        agents = AgentPool(Identity(state.tls_cert, state.tls_key))
        stack.push_async_callback(agents.close)
        head = HeadLink(
            state,
            patience_s=config.frontend.head_timeout_s,
            most_waiting=config.router.queue.max_requests,
        )
        head.on_retire = stopping.set
        counts = DispatchCounts()
        tracer = _tracer(config)
        if tracer is not None:
            stack.callback(tracer.close)
        dispatcher = Dispatcher(config, head, agents, counts, tracer)
        metrics = ServiceMetrics(dispatcher.status, counts)
        tokenizer = Tokenizer.load(config.model)
        stack.callback(tokenizer.close)
        await stack.enter_async_context(UsageRecorder(metrics.tenants, UsageFile(state)))
        if config.frontend.processes > 1:
            head.samples, metrics.siblings = metrics.samples, head.others
        jobs = JobStore(jobs_directory(config, state)) if config.batches.enabled else None
        app = make_app(config, dispatcher, _keys(config, state, head), tokenizer, metrics, tracer, jobs)
        head.traffic, metrics.num_headless = metrics.traffic, lambda: head.num_waiting
        linked = asyncio.create_task(head.run())
        stack.callback(linked.cancel)
        stack.push_async_callback(head.say_goodbye)
        with suppress(TimeoutError):  # who connects before has to be refused: there may be others who can serve
            await asyncio.wait_for(head.heard.wait(), _HEAD_TIMEOUT_S)
        site = await _listen(config, app, index, port)
        stack.push_async_callback(site.close)
        me = _info(config, site, index)
        await head.introduce(me)
        collect_rarely()
        log.info("listening on %s", " and ".join(filter(None, (me.endpoint, me.unix_socket))))
        await _until_told_or_orphaned(stopping, head, config.cluster.orphan_timeout_s)


async def _until_told_or_orphaned(stopping: asyncio.Event, head: HeadLink, orphan_timeout_s: float) -> None:
    while not stopping.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _LOOK_S)
        if head.lost_for_s > orphan_timeout_s:
            log.error("no head for %g s: ending", orphan_timeout_s)
            return


async def _listen(config: Config, app: web.Application, index: int, port: int | None) -> Site:
    """Listen on `port`, which the processes share, else on the configured one. The first has the Unix socket."""
    frontend = config.frontend
    tls = server_tls(frontend.tls_cert, frontend.tls_key) if frontend.tls_cert and frontend.tls_key else None
    host = frontend.host if frontend.tcp else None
    return await start_site(
        app,
        host,
        frontend.port if port is None else port,
        tls=tls,
        unix_socket=frontend.unix_socket if index == 0 else None,
        shares_port=port is not None,
    )


def _info(config: Config, site: Site, index: int) -> FrontendInfo:
    frontend, endpoint = config.frontend, None
    if site.host is not None and site.port is not None:
        endpoint = endpoint_url(site.host, site.port, has_tls=frontend.tls_cert is not None)
    path = str(frontend.unix_socket) if frontend.unix_socket and index == 0 else None
    return FrontendInfo(pid=os.getpid(), endpoint=endpoint, unix_socket=path, index=index, host=socket.gethostname())


def _tracer(config: Config) -> Tracer | None:
    instance = f"frontend-{os.uname().nodename}-{os.getpid()}"
    return open_tracer(config.tracing.endpoint, config.tracing.sample, namespace=config.name, instance=instance)


def _keys(config: Config, state: StateDir, head: HeadLink) -> KeyRing | None:
    if not auth_required(config, config.cluster.kind, config.frontend.host):
        return None
    secret = None if config.security.share_prefixes else state.read_salt_secret()
    make_meter = (lambda tenant: SharedMeter(tenant, head)) if config.frontend.processes > 1 else None
    return KeyRing(state.read_key(), secret, KeyFile(state), make_meter=make_meter)


def main(argv: list[str] | None = None) -> int:
    """Run a frontend and return its exit code."""
    import uvloop

    parser = argparse.ArgumentParser(prog="hpcserve.serve.frontend", description="One hpcserve frontend.")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--index", type=int, default=0, help="of the processes of this deployment")
    parser.add_argument("--shared-port", type=int, help="to listen on together with the other processes")
    parser.add_argument("--host", help="to listen on in place of the configured one")
    options = parser.parse_args(argv)
    state = StateDir(options.state_dir)
    config = state.read_config()
    if options.host is not None:
        config = config.model_copy(update={"frontend": config.frontend.model_copy(update={"host": options.host})})
    configure_logging(config.log_level, config.log_format)
    raise_open_files_limit()
    try:
        uvloop.run(run_frontend(config, state, options.index, options.shared_port))
    except HpcserveError as err:
        log.error("%s", err.message)
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
