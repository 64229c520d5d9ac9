"""The description of the API is about this API: its routes, its replies and their order, what needs a key."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest
from fake_backend import FakeBackend
from fake_keys import FakeKeys, record

from hpcserve.config.models import Config
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.app import make_app
from hpcserve.frontend.description.openapi import openapi_document
from hpcserve.frontend.description.operations import OPERATIONS
from hpcserve.frontend.replies import (
    Alive,
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    Detokenized,
    ErrorReply,
    Healthy,
    ModelList,
    Tokenized,
)

DOCUMENT = openapi_document(has_keys=True)


def parameters_of(document: dict, path: str) -> dict:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]["properties"]


def test_every_route_is_described_and_nothing_else(tokenizer):
    app = make_app(Config(), FakeBackend(), None, tokenizer)
    routes = {(each.method, each.resource.canonical) for each in app.router.routes() if each.method != "HEAD"}
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == routes


def test_every_reference_leads_somewhere():
    references = set(re.findall(r'"#/components/schemas/([^"]*)"', msgspec.json.encode(DOCUMENT).decode()))
    assert len(references) > 20
    assert references <= set(DOCUMENT["components"]["schemas"])


def test_fields_are_those_of_the_schemas_that_validate_with_their_bounds():
    chat = parameters_of(DOCUMENT, "/v1/chat/completions")
    assert chat["temperature"] == {"anyOf": [{"type": "number", "minimum": 0, "maximum": 100}, {"type": "null"}]}
    assert chat["n"] == {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 128}, {"type": "null"}], "default": 1}
    assert {"type": "string", "minLength": 1} in chat["stop"]["anyOf"]
    assert parameters_of(DOCUMENT, "/v1/completions")["prompt"]["anyOf"][0] == {"type": "string"}


def test_known_fields_that_are_not_served_are_described_with_the_values_that_are_taken():
    chat = parameters_of(DOCUMENT, "/v1/chat/completions")
    assert chat["store"]["enum"] == [False, None]
    assert chat["modalities"]["enum"] == [["text"], None]
    assert "enum" not in chat["safety_identifier"]


REPLIES = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, ChatCompletion),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 2, "n": 2},
        ChatCompletion,
    ),
    ("/v1/completions", {"prompt": ["x", "y"]}, Completion),
    ("/v1/completions", {"prompt": "x", "logprobs": 2}, Completion),
    ("/tokenize", {"prompt": "x", "return_token_strs": True}, Tokenized),
    ("/detokenize", {"tokens": [97]}, Detokenized),
    ("/v1/completions", {"prompt": 5}, ErrorReply),
    ("/nowhere", {}, ErrorReply),
    ("/live", {}, ErrorReply),
    ("/v1/models", None, ModelList),
    ("/health", None, Healthy),
    ("/live", None, Alive),
]


@pytest.mark.parametrize(("path", "body", "reply"), REPLIES, ids=str)
async def test_a_reply_has_exactly_the_fields_that_are_described_in_their_order(server, path, body, reply):
    method = "GET" if body is None else "POST"
    sent = None if body is None else {"model": "mock", **body}
    async with server.http.request(method, server.url + path, json=sent) as response:
        content = await response.read()
    assert msgspec.json.encode(msgspec.json.decode(content, type=reply)) == content


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": 2}], ids=["plain", "logprobs"])
async def test_events_of_streams_have_exactly_the_fields_that_are_described(server, logprobs):
    usage = {"stream_options": {"include_usage": True}}
    chat_logprobs = {"logprobs": True, "top_logprobs": 2} if logprobs else {}
    messages = [{"role": "user", "content": "x"}]
    chat = {"model": "mock", "messages": messages, **usage, **chat_logprobs}
    text = {"model": "mock", "prompt": "x", "echo": not logprobs, **usage, **logprobs}
    for path, body, chunk in (
        ("/v1/chat/completions", chat, ChatCompletionChunk),
        ("/v1/completions", text, CompletionChunk),
    ):
        *events, done = await server.stream(path, body)
        assert done == "[DONE]"
        decoded = [msgspec.json.decode(event, type=chunk) for event in events]
        assert decoded[-1].usage.completion_tokens == 2
        assert len(decoded) >= 3


async def test_the_descriptions_are_open_and_say_what_needs_a_key(make_server):
    server = await make_server(keys=KeyRing("sk-one", source=FakeKeys()))
    status, document = await server.get("/openapi.json")
    assert (status, document) == (200, DOCUMENT)
    for operation in OPERATIONS:
        path, method = operation.path.replace("{id}", "mock"), operation.method
        async with server.http.request(method, server.url + path, json={} if method == "POST" else None) as response:
            assert (response.status == 401) == operation.needs_key, path
        described = document["paths"][operation.path][method.lower()]
        assert bool(described["security"]) == operation.needs_key
        assert ("401" in described["responses"]) == operation.needs_key


async def test_without_keys_no_security_is_described(server):
    _, document = await server.get("/openapi.json")
    assert document["components"]["securitySchemes"] == {}
    assert all(each["security"] == [] for methods in document["paths"].values() for each in methods.values())


async def test_a_key_tokenizes_for_its_models_only(make_server):
    keys = FakeKeys(record("alice", "sk-alice", models=("other",)), record("bob", "sk-bob", models=("mock",)))
    server = await make_server(keys=KeyRing("sk-one", source=keys))
    for key, expected in (("sk-alice", 404), ("sk-bob", 200)):
        for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [97]})):
            headers = {"Authorization": f"Bearer {key}"}
            async with server.http.post(server.url + path, json=body, headers=headers) as response:
                assert response.status == expected


class Page(HTMLParser):
    """Notes what a page fetches, runs and shows, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = ""
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        self.links += [given[name] for name in ("href", "src") if name in given]
        self.ids |= {given["id"]} if "id" in given else set()
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


async def test_the_page_shows_every_operation_and_fetches_nothing(server):
    async with server.http.get(server.url + "/docs") as response:
        assert response.content_type == "text/html"
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        page = Page(await response.text())
    assert page.open == []
    for operation in OPERATIONS:
        assert operation.path in page.text
        assert operation.summary in page.text
    assert "return_token_strs" in page.text
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert {each for each in page.links if not each.startswith("#")} == {"openapi.json"}
    assert {each[1:] for each in page.links if each.startswith("#")} <= page.ids
