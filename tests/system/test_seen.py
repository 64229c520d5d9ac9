"""One request followed through a deployment with prefill and decode workers: in its spans, and in all its logs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from tests.grafana import dashboard, exported, wrong_names
from tests.otlp_receiver import Got, Receiver, receiving
from tests.system.chats import session_for, stream_chat
from tests.system.conftest import Deployment, processes_of, run_hpcserve

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

SPLIT = ("--cluster", "local", "--engine", "mock", "--prefill", "1", "--decode", "1")
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
QUESTION = "why do queues form? " * 50
STEPS = {"frontend", "assign", "prefill", "kv_transfer", "decode"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def named(spans: list[Got]) -> dict[str, Got]:
    return {span.name: span for span in spans}


async def ask(deployment: Deployment, question: str, **headers: str) -> Mapping[str, str]:
    """Stream an answer of 20 tokens and return the response's headers."""
    body: dict[str, Any] = {"model": "mock", "prompt": question, "max_tokens": 20, "ignore_eos": True, "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{deployment.endpoint}/completions", json=body, headers=headers) as response,
    ):
        assert response.status == 200
        await response.read()
        return response.headers


async def test_a_traced_request_is_five_spans_of_one_trace(
    deploy: Callable[..., Deployment], receiver: Receiver
) -> None:
    deployment = deploy(*SPLIT, "--set", f"tracing.endpoint={receiver.url}", "--set", "tracing.sample=0")
    await ask(deployment, "not " + QUESTION)  # nobody asked for a trace of this one
    await ask(deployment, "nor this. " + QUESTION, traceparent=f"00-{TRACE[::-1]}-{CALLER}-00")
    given = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "mine"}
    await ask(deployment, QUESTION, **given)
    spans = named(await receiver.until(lambda spans: {span.name for span in spans} >= STEPS))
    assert len(receiver.spans) == len(spans) == 5
    assert {span.trace_id for span in receiver.spans} == {TRACE}
    frontend = spans.pop("frontend")
    assert (frontend.parent_id, frontend.kind) == (CALLER, 2)
    assert {span.parent_id for span in spans.values()} == {frontend.span_id}
    _check_times(frontend, spans)
    _check_attributes(frontend, spans)


def _check_times(frontend: Got, spans: dict[str, Got]) -> None:
    order = [spans[name] for name in ("assign", "prefill", "kv_transfer", "decode")]
    assert frontend.began_ns <= order[0].began_ns
    assert order[-1].ended_ns <= frontend.ended_ns
    for earlier, later in pairwise(order):
        assert earlier.ended_ns <= later.began_ns, f"{later.name} began before {earlier.name} had ended"
    assert sum(span.seconds for span in order) > 0.5 * frontend.seconds
    assert 20 * 0.004 < spans["decode"].seconds < 5, "the mock needs over 5 ms a token"
    assert 0.015 < spans["prefill"].seconds < 5, "and over 16 ms a prefill"
    assert 0 < spans["kv_transfer"].seconds < 1
    assert spans["assign"].seconds < 1


def _check_attributes(frontend: Got, spans: dict[str, Got]) -> None:
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "mock",
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.response.finish_reasons": ["length"],
        "hpcserve.request_id": "mine",
    }
    assert expected.items() <= frontend.attributes.items()
    num_prompt = frontend.attributes["gen_ai.usage.input_tokens"]
    assert 0 < frontend.attributes["gen_ai.response.time_to_first_chunk"] < frontend.seconds
    assert num_prompt > 256
    decode = spans["decode"]
    engine_id = frontend.attributes["gen_ai.response.id"] + "-0"
    assert (decode.attributes["hpcserve.request_id"], decode.attributes["hpcserve.generated_tokens"]) == (engine_id, 20)
    assert spans["prefill"].attributes["hpcserve.request_id"] == f"{engine_id}-prefill"
    assert spans["kv_transfer"].attributes["hpcserve.pulled_tokens"] == num_prompt
    who = {name: span.resource["service.instance.id"].partition("-")[0] for name, span in spans.items()}
    assert who == {"assign": "frontend", "prefill": "prefill", "kv_transfer": "decode", "decode": "decode"}
    assert spans["assign"].attributes["hpcserve.decode_worker"] == decode.resource["service.instance.id"]
    assert {span.resource["service.namespace"] for span in spans.values()} == {"t"}
    assert all(span.failure is None for span in (frontend, *spans.values()))


async def test_spans_of_the_last_seconds_are_sent_when_it_goes_down(
    deploy: Callable[..., Deployment], receiver: Receiver
) -> None:
    deployment = deploy(*SPLIT, "--set", f"tracing.endpoint={receiver.url}")
    await ask(deployment, QUESTION)
    await asyncio.to_thread(deployment.hpcserve, "down")
    assert {span.name for span in receiver.spans} == STEPS
    assert receiver.one("frontend").parent_id == ""


def test_tracing_that_is_not_installed_is_refused_before_anything_starts(
    env: dict[str, str], state_root: Any, tmp_path: Any
) -> None:
    hides = "from importlib import metadata as m\ndef version(name, v=m.version):\n"
    hides += "    if name.startswith('opentelemetry'): raise m.PackageNotFoundError(name)\n    return v(name)\n"
    (tmp_path / "sitecustomize.py").write_text(hides + "m.version = version\n")
    options = ("--set", "tracing.endpoint=http://localhost:4318/v1/traces", "--port", "0", "--detach", "--json")
    done = run_hpcserve("up", *SPLIT, *options, env=env | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "hpcserve[tracing]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not processes_of(state_root)


async def test_a_request_is_found_in_every_log_and_every_line_is_json(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(*SPLIT, "--set", "log_format=json", "--set", "log_level=debug")
    headers = await ask(deployment, QUESTION)
    own_id = headers["x-request-id"]
    async with session_for(deployment.endpoint, "none") as session:
        await stream_chat(session, "hello", max_tokens=2, model="mock")
    deployment.hpcserve("down")
    logs = {path.stem: path.read_text().splitlines() for path in (deployment.state_dir / "logs").glob("*.log")}
    assert {name.partition("-")[0] for name in logs} == {"head", "frontend", "prefill", "decode"}
    for name, lines in logs.items():
        for line in map(json.loads, lines):
            assert {"ts", "level", "logger", "message"} <= line.keys()
        about = [line for line in lines if own_id in line]
        assert about, f"nothing of the request in the log of {name}"
    (line,) = (json.loads(line) for line in logs["frontend"] if f'"request_id":"{own_id}"' in line)
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/completions", 200)
    assert (line["model"], line["generated_tokens"], line["finish_reason"]) == ("mock", 20, "length")
    assert 0 < line["ttft_ms"] < line["e2e_ms"]


async def test_the_grafana_dashboard_names_what_a_deployment_exports(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(*SPLIT, "--set", "security.auth=on")
    key = {"Authorization": f"Bearer {deployment.key}"}
    await ask(deployment, QUESTION, **key)
    async with aiohttp.ClientSession(headers=key) as session:
        url = deployment.endpoint.removesuffix("/v1") + "/metrics"
        async with session.get(url) as response:
            known = exported(await response.text())
    without_samples = {name for name, labels in known.items() if name.startswith("hpcserve_worker_") and not labels}
    assert without_samples <= {
        "hpcserve_worker_end_time_seconds",  # only Slurm's jobs end
        "hpcserve_worker_kv_pull_latency_seconds",  # measured after some pulls, by vLLM
        "hpcserve_worker_kv_pull_tokens_per_second",
        "hpcserve_worker_prefill_tokens_per_second",  # a moment later
        "hpcserve_worker_decode_tokens_per_second",
    }
    assert wrong_names(dashboard(), known | {name: {"worker"} for name in without_samples}) == []
    assert known["hpcserve_worker_info"] == {"worker", "pool", "engine", "kv_transport", "host", "job"}
