"""Requests made from /openapi.json by schemathesis: no failure of ours, and every answer is as described."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator

import jsonschema
import pytest
import requests
import schemathesis
from fake_backend import FakeBackend, embed
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode, checks

from hpcserve.config.models import Config, FrontendConfig
from hpcserve.frontend.app import make_app
from hpcserve.frontend.batches.schemas import BatchBody
from hpcserve.frontend.description.openapi import openapi_document
from hpcserve.frontend.description.operations import OPERATIONS, Operation
from hpcserve.frontend.server.site import start_site
from hpcserve.jobs import JobStore

BOUNDED = settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
ABILITIES = ("generate", "embed", "structured_output")  # what needs parsers is generated with everything else wrong
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def name(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


@pytest.fixture(scope="module")
def url(tokenizer, tmp_path_factory) -> Iterator[str]:
    """Serves in a thread of its own, because schemathesis' client blocks."""
    jobs = JobStore(tmp_path_factory.mktemp("jobs"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start():
        config = Config(frontend=FrontendConfig(drain_timeout_s=0.1))
        app = make_app(config, FakeBackend(embed(), ABILITIES), None, tokenizer, jobs=jobs)
        return await start_site(app, "127.0.0.1", 0)

    try:
        site = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield f"http://127.0.0.1:{site.port}"
        asyncio.run_coroutine_threadsafe(site.close(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def described(url) -> schemathesis.BaseSchema:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    assert document == openapi_document(has_keys=False)
    for schema in document["components"]["schemas"].values():
        if "model" in schema["properties"] and schema.get("additionalProperties") is False:
            schema["properties"]["model"] = {"enum": ["mock"] if "model" in schema["required"] else ["mock", None]}
    narrow(document)
    return schemathesis.openapi.from_dict(document)


def narrow(schema: object) -> None:
    """Keep token ids in the vocabulary and lengths in the context, so that more than a few requests are served."""
    if isinstance(schema, dict):
        if schema.get("maximum") == 2**31 - 1 and schema.get("minimum") == 0:
            schema["maximum"] = 261
        elif schema.get("minimum") == 1 and schema.get("type") == "integer":
            schema.setdefault("maximum", 200)
    for each in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        narrow(each)


def send(url: str, strategy: SearchStrategy[schemathesis.Case], served: list[object] | None = None) -> Counter[int]:
    """Send requests one by one, check each answer, and count statuses; `served` gets the bodies that were."""
    statuses: Counter[int] = Counter()
    with requests.Session() as session:

        @BOUNDED
        @given(strategy)
        def check(case):
            response = case.call(base_url=url, session=session)
            case.validate_response(response, checks=CHECKS)
            statuses[response.status_code] += 1
            if response.status_code == 200 and served is not None:
                served.append(case.body)

        check()
    return statuses


@pytest.mark.parametrize("operation", OPERATIONS, ids=name)
def test_what_the_schemas_allow_is_answered_as_described(url, described, operation):
    strategy = described[operation.path][operation.method].as_strategy(generation_mode=GenerationMode.POSITIVE)
    statuses = send(url, strategy)
    if "{" not in operation.path and operation.body != (BatchBody,):  # nothing of an invented name is there
        assert statuses[200] > 0
    assert set(statuses) <= {200, 400, 404}


# Forms are left out: on the wire a field of the wrong type is text, and may well be right.
@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.body and not each.is_form], ids=name)
def test_what_the_schemas_forbid_is_refused_as_described(url, described, operation):
    strategy = described[operation.path][operation.method].as_strategy(generation_mode=GenerationMode.NEGATIVE)
    served: list[object] = []
    statuses = send(url, strategy, served)
    assert set(statuses) <= {200, 400, 404}
    assert statuses[400] > 0
    document = openapi_document(has_keys=False)  # what is served breaks only what `narrow` has put in
    body = document["paths"][operation.path][operation.method.lower()]["requestBody"]["content"]["application/json"]
    allowed = jsonschema.Draft202012Validator({**body["schema"], "components": document["components"]})
    assert [each for each in served if not allowed.is_valid(without_nulls(each))] == []


def without_nulls(value: object) -> object:
    """Return a body as it is read: null is "not given", whatever the field."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def test_an_answer_that_is_not_as_described_is_noticed(url):
    document = openapi_document(has_keys=False)
    document["components"]["schemas"]["Alive"]["properties"]["status"] = {"type": "integer"}
    operation = schemathesis.openapi.from_dict(document)["/live"]["GET"]
    with pytest.raises(BaseExceptionGroup) as raised:
        send(url, operation.as_strategy())
    assert raised.group_contains(Exception, match="Response violates schema")
