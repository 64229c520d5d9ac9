"""A key may be good for some models only; what others used is the operator's to see."""

from __future__ import annotations

import openai
import pytest
from fake_keys import FakeKeys, record

from hpcserve.frontend.access.key_ring import KeyRing


@pytest.fixture
async def locked(make_server):
    keys = FakeKeys(
        record("all", "sk-all"), record("this", "sk-this", models=("mock", "x")), record("other", "sk-x", models=("x",))
    )
    return await make_server(keys=KeyRing("sk-own", source=keys))


@pytest.mark.parametrize(
    ("key", "models"), [("sk-own", ["mock"]), ("sk-all", ["mock"]), ("sk-this", ["mock"]), ("sk-x", [])]
)
async def test_a_key_lists_the_models_that_it_is_good_for(locked, key, models):
    _, answer = await locked.get("/v1/models", **{"x-api-key": key})
    assert [each["id"] for each in answer["data"]] == models
    assert (await locked.get("/v1/models/mock", **{"x-api-key": key}))[0] == (200 if models else 404)


async def test_another_model_is_not_found_as_openai_says_it(locked):
    async with openai.AsyncOpenAI(base_url=locked.url + "/v1", api_key="sk-x", max_retries=0) as client:
        messages = [{"role": "user", "content": "hi"}]
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as refused:
                await client.chat.completions.create(model="mock", messages=messages, stream=stream)
            assert refused.value.code == "model_not_found"
            assert refused.value.param == "model"
        with pytest.raises(openai.NotFoundError, match="your key is not good for it"):
            await client.completions.create(model="mock", prompt="hi")
        with pytest.raises(openai.NotFoundError) as refused:
            await client.completions.create(model="x", prompt="hi")  # good for it, but it is not served
        assert refused.value.code == "model_not_found"
    assert locked.backend.requests == []


async def test_whether_another_model_exists_is_not_told(locked):
    def without_name(answer: dict, name: str) -> str:
        return answer["error"]["message"].replace(name, "…")

    answers = [
        without_name((await locked.get(f"/v1/models/{name}", **{"x-api-key": "sk-x"}))[1], name)
        for name in ("mock", "no-such-model")
    ]
    assert answers[0] == answers[1]


async def test_a_key_that_is_good_for_the_model_gets_answers(locked):
    locked.http.headers["x-api-key"] = "sk-this"
    assert (await locked.chat())[0] == 200


async def test_only_the_deployments_own_key_sees_what_tenants_used(locked):
    texts = {}
    for key in ("sk-all", "sk-own"):
        async with locked.http.get(locked.url + "/metrics", headers={"x-api-key": key}) as response:
            texts[key] = await response.text()
    assert "tenant" not in texts["sk-all"]
    assert 'hpcserve_tenant_requests_total{tenant="all"} 1.0' in texts["sk-own"]
    assert "hpcserve_inflight_requests" in texts["sk-all"]
