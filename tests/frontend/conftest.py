from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp
import pytest
import uvloop
from fake_backend import FakeBackend

from hpcserve.config.models import Config, FrontendConfig, ModelConfig
from hpcserve.config.service_models import BatchesConfig
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.app import make_app
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.frontend.server.site import start_site
from hpcserve.jobs import JobStore
from hpcserve.observability.metrics import ServiceMetrics

if TYPE_CHECKING:
    import anthropic


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """As in production: how writes are buffered and closed sockets are seen is uvloop's."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def tokenizer() -> Iterator[Tokenizer]:
    built_in = Tokenizer.load(ModelConfig())
    yield built_in
    built_in.close()


class Server:
    """A frontend on a loopback port, with a client session."""

    def __init__(self, backend: FakeBackend, metrics: ServiceMetrics, port: int, http: aiohttp.ClientSession) -> None:
        self.backend = backend
        self.metrics = metrics
        self.port = port
        self.http = http
        self.url = f"http://127.0.0.1:{port}"

    async def chat(self, **fields: object) -> tuple[int, dict]:
        messages = [{"role": "user", "content": "hi"}]
        return await self.post("/v1/chat/completions", {"model": "mock", "messages": messages, **fields})

    async def complete(self, **fields: object) -> tuple[int, dict]:
        return await self.post("/v1/completions", {"model": "mock", "prompt": "hi", **fields})

    async def post(self, path: str, body: object) -> tuple[int, dict]:
        async with self.http.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def get(self, path: str, **headers: str) -> tuple[int, dict]:
        async with self.http.get(self.url + path, headers=headers) as response:
            return response.status, await response.json()

    async def stream(self, path: str, body: dict) -> list[str]:
        """Return the data of all events."""
        async with self.http.post(self.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            text = await response.text()
        assert text.endswith("\n\n")
        return [event.removeprefix("data: ") for event in text[:-2].split("\n\n")]


MakeServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def make_server(tokenizer: Tokenizer) -> AsyncIterator[MakeServer]:
    async with AsyncExitStack() as stack:

        async def make(
            backend: FakeBackend | None = None,
            keys: KeyRing | None = None,
            own_tokenizer: Tokenizer | None = None,
            jobs: JobStore | None = None,
            batches: dict[str, object] | None = None,
            **frontend: float,
        ) -> Server:
            backend = backend or FakeBackend()
            metrics = ServiceMetrics(backend.status)
            own = BatchesConfig.model_validate(batches or {})
            config = Config(frontend=FrontendConfig(drain_timeout_s=0.2, **frontend), batches=own)
            app = make_app(config, backend, keys, own_tokenizer or tokenizer, metrics, jobs=jobs)
            site = await start_site(app, "127.0.0.1", 0)
            stack.push_async_callback(site.close)
            http = await stack.enter_async_context(aiohttp.ClientSession())
            return Server(backend, metrics, site.port, http)

        yield make


@pytest.fixture
async def server(make_server: MakeServer) -> Server:
    return await make_server()


ConnectAnthropic = Callable[..., Awaitable[tuple["anthropic.AsyncAnthropic", Server]]]


@pytest.fixture
async def connect_anthropic(make_server: MakeServer) -> AsyncIterator[ConnectAnthropic]:
    """Makes a server and an asynchronous client of Anthropic's for it."""
    import anthropic  # which takes long

    clients: list[anthropic.AsyncAnthropic] = []

    async def connect(
        backend: FakeBackend | None = None, key: str = "sk-one", **frontend: float
    ) -> tuple[anthropic.AsyncAnthropic, Server]:
        server = await make_server(backend or FakeBackend(), keys=KeyRing("sk-one"), **frontend)
        clients.append(anthropic.AsyncAnthropic(base_url=server.url, api_key=key, max_retries=0))
        return clients[-1], server

    yield connect
    for client in clients:
        await client.close()
