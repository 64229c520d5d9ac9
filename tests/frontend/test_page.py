"""The page and what it asks for: what is sent to whom. How it looks and works in a browser: tests/system."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files

import msgspec
import pytest
from fake_backend import FakeBackend, ready_status, speak, worker
from fake_keys import FakeKeys, record

from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.status import DeploymentStatus
from hpcserve.types import Phase, Traffic, WorkerState

PARTS = {each.name: each.read_text() for each in files("hpcserve.frontend.page").iterdir() if each.is_file()}
SCRIPTS = {name: text for name, text in PARTS.items() if name.endswith(".js")}


async def fetch(server, path, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with server.http.get(server.url + path, headers=headers) as response:
        return response, await response.text()


async def status_for(server, key):
    response, text = await fetch(server, "/status", key)
    assert response.status == 200
    return msgspec.json.decode(text, type=DeploymentStatus)


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/page.css"])
async def test_the_page_may_fetch_from_its_own_endpoint_only_and_stands_in_no_frame(server, path):
    response, _ = await fetch(server, path)
    policy = dict(each.strip().partition(" ")[::2] for each in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"


async def test_all_parts_that_the_page_names_are_there_with_their_types(server):
    _, text = await fetch(server, "/")
    named = set(re.findall(r'(?:src|href)="(page/[^"]+)"', text))
    named |= {f"page/{each}" for script in SCRIPTS.values() for each in re.findall(r'from "\./(.+)"', script)}
    assert {f"page/{name}" for name in PARTS if not name.endswith((".py", ".html"))} == named
    for path in named:
        response, _ = await fetch(server, f"/{path}")
        assert response.status == 200
        kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        assert response.content_type == kinds[path.rpartition(".")[2]]


def test_nothing_is_fetched_from_elsewhere_and_no_data_becomes_markup():
    for name, text in PARTS.items():
        urls = set(re.findall(r"\w+://[^\"'\s)]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not urls, name
    for name, text in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage", text), (
            name
        )
    assert not re.search(r"<[^>]+\s(style|on\w+)=", PARTS["index.html"])


@pytest.mark.parametrize("name", ["__init__.py", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "nothing.js"])
async def test_nothing_but_parts_of_the_page_is_sent(server, name):
    async with server.http.get(f"{server.url}/page/{name}") as response:
        assert response.status == 404


async def test_the_page_is_open_and_says_whether_it_has_to_ask_for_a_key(make_server):
    open_server, locked = await make_server(), await make_server(keys=KeyRing("sk-own"))
    assert '<meta name="keys" content="none">' in (await fetch(open_server, "/"))[1]
    response, text = await fetch(locked, "/")
    assert response.status == 200
    assert '<meta name="keys" content="asked">' in text
    assert (await fetch(locked, "/page/app.js"))[0].status == 200
    assert (await fetch(locked, "/status"))[0].status == 401
    assert (await fetch(locked, "/page/../status"))[0].status == 401


async def test_the_operator_sees_where_it_runs_and_others_see_that_it_runs(make_server):
    host = msgspec.structs.replace(worker(), host="node7")
    failed = msgspec.structs.replace(worker(WorkerState.FAILED, name="both-1-b"), detail="the log said this")
    backend = FakeBackend()
    backend.now = ready_status(
        workers=(host, failed), warnings=("beware",), detail="because", dashboard="http://127.0.0.1:1/hpcserve"
    )
    keys = FakeKeys(record("alice", "sk-alice"), record("bob", "sk-bob", models=("other",)))
    server = await make_server(backend, keys=KeyRing("sk-own", source=keys))
    own, alice, bob = [await status_for(server, key) for key in ("sk-own", "sk-alice", "sk-bob")]
    assert (own.workers[0].host, own.workers[1].detail) == ("node7", "the log said this")
    assert (own.warnings, own.detail, own.dashboard) == (["beware"], "because", "http://127.0.0.1:1/hpcserve")
    for other in (alice, bob):
        assert [(each.id, each.state, each.host, each.detail) for each in other.workers] == [
            ("both-0-a", "ready", None, None),
            ("both-1-b", "failed", None, None),
        ]
        assert (other.warnings, other.detail, other.dashboard) == ([], None, None)
    assert (own.model, alice.model, bob.model) == ("mock", "mock", None)


async def test_no_tenant_is_named(make_server):
    keys = FakeKeys(record("alice", "sk-alice"), record("bob", "sk-bob"))
    server = await make_server(keys=KeyRing("sk-own", source=keys))
    server.metrics.tenants["alice"].requests = 5
    for key in ("sk-own", "sk-bob"):
        assert "alice" not in (await fetch(server, "/status", key))[1]


async def test_a_deployment_without_workers_has_a_status_too(server):
    server.backend.now = ready_status(phase=Phase.STARTING, workers=(), load={})
    status = await status_for(server, None)
    assert (status.phase, status.workers, status.max_model_len) == ("starting", [], None)


async def test_the_history_grows_with_what_this_frontend_saw(server):
    server.backend.script = speak(["a", "b", "c"])
    first = await status_for(server, None)
    assert len(first.history.at) == 1
    await server.complete()
    history = first.history
    async with asyncio.timeout(5):
        while history.ttft_p50_ms[-1] is None:
            history = (await status_for(server, None)).history
    assert len({len(getattr(history, name)) for name in history.__struct_fields__}) == 1
    assert history.running[-1] == 3
    assert history.kv_usage[-1] == 0.25


async def test_what_the_head_knows_of_all_frontends_goes_before_what_this_one_saw(server):
    server.backend.now = ready_status(traffic=Traffic())
    await server.complete()
    points_before = len((await status_for(server, None)).history.at)
    async with asyncio.timeout(5):
        while len((history := (await status_for(server, None)).history).at) == points_before:
            pass
    assert history.ttft_p50_ms[-1] is None
