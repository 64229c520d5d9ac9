"""Whatever is sent, the answer is a success or a 4xx in OpenAI's form, and nothing is logged as a failure."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from fake_backend import FakeBackend, embed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcserve.config.models import Config, FrontendConfig
from hpcserve.frontend.app import make_app
from hpcserve.frontend.responses.schemas import ResponsesBody
from hpcserve.frontend.schemas import ChatBody, CompletionBody
from hpcserve.frontend.schemas.embeddings import EmbeddingsBody
from hpcserve.frontend.server.site import start_site

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PLAIN = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text(max_size=40)}), min_size=1
)
MESSAGES = PLAIN | st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool", ""]) | VALUES},
        optional={"content": st.text(max_size=40) | VALUES, "name": VALUES, "tool_calls": VALUES},
    ),
    max_size=4,
)


def _bodies(schema: type, always: dict, likely: dict) -> st.SearchStrategy:
    """A valid core, and up to four other fields with likely or with any values: some bodies must be accepted."""
    optional = {name: likely.get(name, VALUES) for name in schema.model_fields if name not in always}
    optional |= {"tools": VALUES, "best_of": VALUES, "whatever": VALUES}
    chosen = st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True)
    extras = chosen.flatmap(lambda names: st.fixed_dictionaries({name: optional[name] for name in names}))
    return st.builds(lambda core, extra: {**core, **extra}, st.fixed_dictionaries(always), extras)


MODEL = st.sampled_from(["mock"] * 9 + ["other", 5])
LIKELY = {
    "n": st.integers(-1, 3),
    "max_tokens": st.integers(-1, 2000),
    "temperature": st.floats(-1, 3),
    "stream": st.booleans(),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "logprobs": st.booleans() | st.integers(-1, 22),
    "logit_bias": st.dictionaries(st.integers(-1, 300).map(str) | st.text(max_size=3), st.floats(-101, 101)),
    "echo": st.booleans(),
    "seed": st.integers(),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["messages", "x", "bos_token"]), VALUES),
}
CHATS = _bodies(ChatBody, {"model": MODEL, "messages": PLAIN | MESSAGES | VALUES}, LIKELY)
PROMPTS = st.text(max_size=50) | st.lists(st.integers(-1, 300), max_size=5) | VALUES
COMPLETIONS = _bodies(CompletionBody, {"model": MODEL, "prompt": PROMPTS}, LIKELY)
INPUTS = (
    st.text(max_size=50)
    | VALUES
    | st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=40)},
            optional={"type": st.sampled_from(["message", "reasoning", ""]) | VALUES, "status": VALUES},
        ),
        max_size=4,
    )
)
RESPONSES = _bodies(ResponsesBody, {"model": MODEL, "input": INPUTS}, LIKELY)
EMBEDDINGS = _bodies(EmbeddingsBody, {"model": MODEL, "input": PROMPTS}, LIKELY)
RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def sending(tokenizer, caplog):
    """Runs a server on a loop of its own, because hypothesis is not asynchronous."""
    with asyncio.Runner() as runner:

        async def start():
            config = Config(frontend=FrontendConfig(drain_timeout_s=0.1))
            return await start_site(
                make_app(config, FakeBackend(embed(), ("generate", "embed")), None, tokenizer), "127.0.0.1", 0
            )

        async def connect():
            return aiohttp.ClientSession()

        site = runner.run(start())
        client = runner.run(connect())

        async def send(path: str, data: bytes) -> int:
            url = f"http://127.0.0.1:{site.port}{path}"
            async with client.post(url, data=data, headers={"Content-Type": "application/json"}) as response:
                content = await response.read()
                assert response.status < 500, content
                if response.status != 200:
                    assert 400 <= response.status < 500
                    assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
                assert b"Traceback" not in content
                return response.status

        yield lambda path, data: runner.run(send(path, data))
        runner.run(client.close())
        runner.run(site.close())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_chat_bodies_made_of_the_schemas_fields_never_fail(sending):
    statuses = set()

    @RELAXED
    @given(CHATS)
    def check(body):
        statuses.add(sending("/v1/chat/completions", json.dumps(body).encode("utf-8", "surrogatepass")))

    check()
    assert {200, 400} <= statuses


def test_completion_bodies_made_of_the_schemas_fields_never_fail(sending):
    statuses = set()

    @RELAXED
    @given(COMPLETIONS)
    def check(body):
        statuses.add(sending("/v1/completions", json.dumps(body).encode("utf-8", "surrogatepass")))

    check()
    assert {200, 400} <= statuses


def test_bodies_of_responses_made_of_the_schemas_fields_never_fail(sending):
    statuses = set()

    @RELAXED
    @given(RESPONSES)
    def check(body):
        statuses.add(sending("/v1/responses", json.dumps(body).encode("utf-8", "surrogatepass")))

    check()
    assert {200, 400} <= statuses


def test_bodies_of_embeddings_made_of_the_schemas_fields_never_fail(sending):
    statuses = set()

    @RELAXED
    @given(EMBEDDINGS)
    def check(body):
        statuses.add(sending("/v1/embeddings", json.dumps(body).encode("utf-8", "surrogatepass")))

    check()
    assert {200, 400} <= statuses


def test_raw_bytes_never_fail(sending):
    @RELAXED
    @given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
    def check(data):
        sending("/v1/completions", data)

    check()
