"""Puts the frontend together: routes, middlewares, and the listening socket."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from aiohttp import web

from hpcserve.config.models import Config
from hpcserve.errors import BodyTooLarge, StartError
from hpcserve.frontend import probes
from hpcserve.frontend.auth import require_key
from hpcserve.frontend.backend import Backend
from hpcserve.frontend.body import check_declared_size
from hpcserve.frontend.chat import create_chat_completion
from hpcserve.frontend.completions import create_completion
from hpcserve.frontend.context import FRONTEND, Frontend
from hpcserve.frontend.description import Description
from hpcserve.frontend.errors import error_response, guard
from hpcserve.frontend.key_ring import KeyRing
from hpcserve.frontend.tokenizer import Tokenizer
from hpcserve.frontend.tokenizing import detokenize, tokenize
from hpcserve.observability.metrics import ServiceMetrics

_BACKLOG = 4096
_KEEPALIVE_TIMEOUT_S = 75.0
_LINGERING_TIME_S = 2.0  # how long the rest of a refused body is read, so that the client sees the answer


def make_app(
    config: Config,
    backend: Backend,
    keys: KeyRing | None,
    tokenizer: Tokenizer,
    metrics: ServiceMetrics | None = None,
) -> web.Application:
    """Return the application. Without `keys` everybody may use it; `metrics` are made when not given."""
    middlewares = [guard] if keys is None else [guard, require_key(keys)]
    app = web.Application(middlewares=middlewares, client_max_size=int(config.frontend.max_body_mb * 1e6))
    app[FRONTEND] = Frontend(config, backend, tokenizer, metrics or ServiceMetrics(backend.status))
    router = app.router
    router.add_get("/v1/models", probes.list_models)
    router.add_get("/v1/models/{id:.+}", probes.get_model)
    router.add_post("/v1/chat/completions", create_chat_completion, expect_handler=_expect)
    router.add_post("/v1/completions", create_completion, expect_handler=_expect)
    router.add_post("/tokenize", tokenize, expect_handler=_expect)
    router.add_post("/detokenize", detokenize, expect_handler=_expect)
    router.add_get("/health", probes.health)
    router.add_get("/live", probes.live)
    router.add_get("/metrics", probes.metrics)
    description = Description(has_keys=keys is not None)
    router.add_get("/openapi.json", description.document)
    router.add_get("/docs", description.page)
    return app


@dataclass(frozen=True)
class Site:
    """A running HTTP server."""

    host: str
    port: int
    _runner: web.AppRunner

    async def close(self) -> None:
        """Stop accepting, let requests end for as long as `frontend.drain_timeout_s`, then abort them."""
        await self._runner.cleanup()


async def start_site(app: web.Application, host: str, port: int, sock: socket.socket | None = None) -> Site:
    """Listen on `host`:`port` (0: any free port), or on `sock`. Raises `StartError` when the port is taken."""
    runner = web.AppRunner(
        app,
        access_log=None,  # the guard logs
        handler_cancellation=True,  # a client that hangs up aborts its requests
        shutdown_timeout=app[FRONTEND].config.frontend.drain_timeout_s,
        keepalive_timeout=_KEEPALIVE_TIMEOUT_S,
        lingering_time=_LINGERING_TIME_S,
    )
    await runner.setup()
    try:
        if sock is None:
            await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
        else:
            await web.SockSite(runner, sock, backlog=_BACKLOG).start()
    except OSError as err:
        await runner.cleanup()
        message = f"cannot listen on {host}:{port}: {err.strerror or err}; choose another with --port"
        raise StartError(message, param="frontend.port") from err
    return Site(host, runner.addresses[0][1], runner)


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Answer `Expect: 100-continue` before the client sends a body that would be refused."""
    try:
        check_declared_size(request)
    except BodyTooLarge as err:
        return error_response(err)
    if request.transport is not None and request.headers.get("Expect", "").lower() == "100-continue":
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return None
