from __future__ import annotations

import asyncio
import socket

import pytest
from fake_backend import FakeBackend, hang_after, ready_status, worker

from hpcserve.config.models import Config
from hpcserve.errors import StartError
from hpcserve.frontend.app import make_app
from hpcserve.frontend.server.site import start_site
from hpcserve.types import Phase, WorkerState

NOT_READY = {
    "starting": ready_status(phase=Phase.STARTING, workers=(worker(WorkerState.LOADING),)),
    "no workers": ready_status(workers=()),
    "draining": ready_status(phase=Phase.DRAINING),
    "failed": ready_status(phase=Phase.FAILED, detail="no GPU"),
}


@pytest.mark.parametrize("name", NOT_READY)
async def test_nothing_is_offered_until_a_worker_is_ready(server, name):
    server.backend.now = NOT_READY[name]
    assert await server.get("/v1/models") == (200, {"object": "list", "data": []})
    status, answer = await server.get("/health")
    assert status == 503
    assert answer["error"]["message"]
    status, answer = await server.chat()
    assert (status, answer["error"]["type"]) == (503, "service_unavailable_error")
    assert server.backend.requests == []
    assert (await server.get("/live"))[0] == 200
    assert (await server.get("/v1/models/mock"))[0] == 503


async def test_the_reason_for_not_being_ready_is_told(server):
    server.backend.now = NOT_READY["starting"]
    assert "1 loading" in (await server.get("/health"))[1]["error"]["message"]
    server.backend.now = NOT_READY["failed"]
    assert "no GPU" in (await server.get("/health"))[1]["error"]["message"]


async def test_a_ready_service_is_healthy_and_names_its_model(server):
    assert (await server.get("/health"))[0] == 200
    _, answer = await server.get("/v1/models")
    assert [(each["id"], each["max_model_len"]) for each in answer["data"]] == [("mock", 1000)]
    assert (await server.get("/v1/models/mock"))[1] == answer["data"][0]
    status, answer = await server.get("/v1/models/org/other")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_the_context_is_the_shortest_of_the_ready_workers(server):
    loading = worker(WorkerState.LOADING, context=10, name="c")
    server.backend.now = ready_status(workers=(worker(), worker(context=500, name="b"), loading))
    assert (await server.get("/v1/models"))[1]["data"][0]["max_model_len"] == 500


async def test_metrics_count_requests_tokens_and_latencies(server):
    await server.chat()
    await server.stream("/v1/completions", {"model": "mock", "prompt": "hi"})
    await server.chat(max_tokens=-1)
    text = await _scrape(server)
    for line in (
        'hpcserve_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        'hpcserve_requests_total{route="/v1/chat/completions",status="400"} 1.0',
        'hpcserve_requests_total{route="/v1/completions",status="200"} 1.0',
        'hpcserve_request_success_total{finished_reason="stop"} 2.0',
        "hpcserve_generation_tokens_total 4.0",
        "hpcserve_cached_prompt_tokens_total 6.0",
        "hpcserve_time_to_first_token_seconds_count 2.0",
        "hpcserve_inter_token_latency_seconds_count 2.0",
        "hpcserve_e2e_request_latency_seconds_count 2.0",
        "hpcserve_inflight_requests 0.0",
        "hpcserve_reassignments_total 0.0",
    ):
        assert line in text.splitlines(), line


async def test_metrics_show_the_workers_and_their_load_of_now(server):
    text = await _scrape(server)
    assert 'hpcserve_worker_state{pool="both",role="both",state="ready",worker="both-0-a"} 1.0' in text
    assert 'hpcserve_worker_kv_cache_usage_ratio{worker="both-0-a"} 0.25' in text
    assert 'hpcserve_worker_prefix_cache_hits_total{worker="both-0-a"} 7.0' in text
    assert 'hpcserve_workers_wanted{pool="both"} 1.0' in text
    server.backend.now = ready_status(workers=())
    assert "hpcserve_worker_state{" not in await _scrape(server)


async def test_requests_that_wait_and_run_are_gauges(make_server):
    server = await make_server(FakeBackend(hang_after([])))
    pending = server.http.post(server.url + "/v1/completions", json={"model": "mock", "prompt": "x"})
    task = asyncio.ensure_future(pending)
    await server.backend.until(lambda: server.backend.running == 1)
    text = await _scrape(server)
    assert "hpcserve_inflight_requests 1.0" in text
    assert "hpcserve_queued_requests 1.0" in text
    task.cancel()
    await server.backend.until(lambda: server.backend.running == 0)


async def test_one_line_a_request_is_logged(server, caplog):
    caplog.set_level("INFO", logger="hpcserve")
    await server.chat()
    await server.get("/live")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("POST /v1/chat/completions 200 id=")
    assert "generated=2" in lines[0]
    assert "cached=3" in lines[0]


async def test_a_taken_port_is_one_clear_line(tokenizer):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        app = make_app(Config(), FakeBackend(), None, tokenizer)
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}.*--port"):
            await start_site(app, "127.0.0.1", port)


async def test_a_socket_that_is_open_already_can_be_used(tokenizer):
    sock = socket.create_server(("127.0.0.1", 0))
    site = await start_site(make_app(Config(), FakeBackend(), None, tokenizer), "127.0.0.1", 0, sock)
    assert site.port == sock.getsockname()[1]
    await site.close()


async def _scrape(server) -> str:
    async with server.http.get(server.url + "/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        return await response.text()
