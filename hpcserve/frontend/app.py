"""Puts the frontend together: routes and middlewares. Where it listens is `site.py`."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from hpcserve.config.models import Config
from hpcserve.errors import BodyTooLarge
from hpcserve.frontend import probes
from hpcserve.frontend.access.auth import require_key
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.backend import Backend
from hpcserve.frontend.batches.handlers import cancel_batch, create_batch, get_batch, list_batches
from hpcserve.frontend.body import check_declared_size
from hpcserve.frontend.chat.handlers import create_chat_completion
from hpcserve.frontend.completions.handlers import create_completion
from hpcserve.frontend.context import FRONTEND, Frontend
from hpcserve.frontend.description.routes import Description
from hpcserve.frontend.embeddings import create_embeddings
from hpcserve.frontend.errors import guard
from hpcserve.frontend.files.handlers import create_file, delete_file, get_content, get_file, list_files
from hpcserve.frontend.messages.handlers import count_tokens, create_message
from hpcserve.frontend.page import Page
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.frontend.responses.handlers import create_response
from hpcserve.frontend.status import HISTORY, NUM_POINTS, keep_history, show_status
from hpcserve.frontend.tokenizing import detokenize, tokenize
from hpcserve.jobs import JobStore
from hpcserve.observability.history import History
from hpcserve.observability.metrics import ServiceMetrics
from hpcserve.observability.tracing import Tracer


def make_app(
    config: Config,
    backend: Backend,
    keys: KeyRing | None,
    tokenizer: Tokenizer,
    metrics: ServiceMetrics | None = None,
    tracer: Tracer | None = None,
    jobs: JobStore | None = None,
) -> web.Application:
    """Return the application. Without `keys` everybody may use it; `metrics` are made when not given.

    Without `jobs` there are no files and batches.
    """
    middlewares = [guard] if keys is None else [guard, require_key(keys)]
    app = web.Application(middlewares=middlewares, client_max_size=int(config.frontend.max_body_mb * 1e6))
    app[FRONTEND] = Frontend(config, backend, tokenizer, metrics or ServiceMetrics(backend.status), tracer, jobs)
    app[HISTORY] = History(NUM_POINTS)
    app.cleanup_ctx.append(keep_history)
    router = app.router
    router.add_get("/v1/models", probes.list_models)
    router.add_get("/v1/models/{id:.+}", probes.get_model)
    router.add_post("/v1/chat/completions", create_chat_completion, expect_handler=_expect)
    router.add_post("/v1/completions", create_completion, expect_handler=_expect)
    router.add_post("/v1/embeddings", create_embeddings, expect_handler=_expect)
    router.add_post("/v1/responses", create_response, expect_handler=_expect)
    router.add_post("/v1/messages", create_message, expect_handler=_expect)
    router.add_post("/v1/messages/count_tokens", count_tokens, expect_handler=_expect)
    router.add_post("/tokenize", tokenize, expect_handler=_expect)
    router.add_post("/detokenize", detokenize, expect_handler=_expect)
    _add_jobs(router)
    router.add_get("/health", probes.health)
    router.add_get("/live", probes.live)
    router.add_get("/metrics", probes.metrics)
    router.add_get("/status", show_status)
    page = Page(has_keys=keys is not None)
    router.add_get("/", page.index)
    router.add_get("/page/{name:.+}", page.part)
    description = Description(has_keys=keys is not None)
    router.add_get("/openapi.json", description.document)
    router.add_get("/docs", description.page)
    return app


def _add_jobs(router: web.UrlDispatcher) -> None:
    router.add_post("/v1/files", create_file)
    router.add_get("/v1/files", list_files)
    router.add_get("/v1/files/{id}", get_file)
    router.add_get("/v1/files/{id}/content", get_content)
    router.add_delete("/v1/files/{id}", delete_file)
    router.add_post("/v1/batches", create_batch, expect_handler=_expect)
    router.add_get("/v1/batches", list_batches)
    router.add_get("/v1/batches/{id}", get_batch)
    router.add_post("/v1/batches/{id}/cancel", cancel_batch, expect_handler=_expect)


async def _expect(request: web.Request) -> None:
    """Answer `Expect: 100-continue`, but for a body that will be refused: that answer comes instead of the body."""
    with suppress(BodyTooLarge):
        check_declared_size(request)
        if request.transport is not None and request.headers.get("Expect", "").lower() == "100-continue":
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
