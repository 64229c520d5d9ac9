"""The connections of the HTTP server: what is not HTTP is refused in the API's form, and who does not read is let go.

Slow senders are not its business: headers have to come within aiohttp's keep-alive time-out, for bodies see `body.py`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from hpcserve.errors import BadRequest
from hpcserve.frontend.context import FRONTEND
from hpcserve.frontend.errors import error_response
from hpcserve.observability.metrics import ServiceMetrics

log = logging.getLogger(__name__)

_STALL_TIMEOUT_S = 60.0
_HEADERS_TOO_LARGE = 431
_MAX_REASON_CHARS = 200


class Connection(web.RequestHandler):
    """One client's connection. Costs nothing a request over aiohttp's own, until something is wrong."""

    __slots__ = ("_metrics", "_num_unread", "_stall_timer")

    def __init__(self, server: web.Server, metrics: ServiceMetrics, options: dict[str, Any]) -> None:
        """`options` are aiohttp's for a connection."""
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._metrics = metrics
        self._stall_timer: asyncio.TimerHandle | None = None
        self._num_unread = 0  # bytes, when the timer was started

    def pause_writing(self) -> None:
        """Begin to watch a client that leaves more unread than the transport likes to hold."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Stop watching: the client has read."""
        self._unwatch()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the client."""
        self._unwatch()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Refuse what is no HTTP as every bad request is refused, and log no traceback: it is not our failure."""
        if not isinstance(exc, HttpProcessingError) or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        status, reason = _refusal(exc, self.max_headers, self.max_field_size)
        log.debug("refused what came from %s with %d: %s", request.remote, status, reason)
        self._metrics.requests["unknown", status] += 1
        response = error_response(BadRequest(reason))
        response.set_status(status)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a failure, unless it is a body's that cannot be decoded, of which the client was told."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def _watch(self) -> None:
        if self.transport is not None:
            self._num_unread = self.transport.get_write_buffer_size()
            self._stall_timer = self._loop.call_later(_STALL_TIMEOUT_S, self._drop_if_stalled)

    def _unwatch(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _drop_if_stalled(self) -> None:
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() < self._num_unread:
            self._watch()
            return
        log.warning("dropped a client that read nothing of %d bytes in %.0f s", self._num_unread, _STALL_TIMEOUT_S)
        self._metrics.slow_clients += 1
        self.transport.abort()


class Runner(web.AppRunner):
    """Runs an application on connections of ours."""

    def __init__(self, app: web.Application, *, shutdown_timeout_s: float, options: dict[str, Any]) -> None:
        """`options` are aiohttp's for a connection; a client that hangs up has its handler cancelled."""
        super().__init__(app, handler_cancellation=True, shutdown_timeout=shutdown_timeout_s)
        self._metrics = app[FRONTEND].metrics
        self._options = options

    @property
    def server(self) -> web.Server | None:
        """What sites call for every connection."""
        server = super().server
        if server is None:
            return None
        return cast(web.Server, lambda: Connection(server, self._metrics, self._options))


def _refusal(error: HttpProcessingError, max_headers: int, max_field_bytes: int) -> tuple[int, str]:
    """Return the status and what to tell the client; of the parser's message the first line, as the rest is bytes."""
    if isinstance(error, LineTooLong):
        return _HEADERS_TOO_LARGE, f"the address, or a header, is longer than {max_field_bytes} bytes"
    if error.message.startswith("Too many"):
        return _HEADERS_TOO_LARGE, f"there are more than {max_headers} headers"
    first = error.message.strip().partition("\n")[0].rstrip(":.")
    return BadRequest.http_status, f"this is not valid HTTP: {first[:_MAX_REASON_CHARS]}"
