from __future__ import annotations

import pytest
from fake_keys import FakeKeys, record

from hpcserve.config.models import Config, SecurityConfig
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.frontend.exposure import auth_required


@pytest.fixture
async def locked(make_server):
    return await make_server(keys=KeyRing("sk-one", source=FakeKeys(record("two", "sk-two"))))


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer sk-one"},
        {"Authorization": "bearer  sk-two "},
        {"api-key": "sk-one"},
        {"x-api-key": "sk-two"},
    ],
)
async def test_any_of_the_keys_opens_in_any_of_the_headers(locked, headers):
    assert (await locked.get("/v1/models", **headers))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer sk-three"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic sk-one"},
        {"Authorization": "sk-one"},
        {"x-api-key": "sk-on"},
        {"Authorization": "Bearer schl\u00fcssel"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nowhere"])
async def test_everything_else_is_unauthorized_in_openais_form(locked, headers, path):
    async with locked.http.get(locked.url + path, headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        error = (await response.json())["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")


async def test_a_body_without_a_key_reaches_no_engine(locked):
    status, _ = await locked.chat()
    assert status == 401
    assert locked.backend.requests == []


async def test_probes_need_no_key(locked):
    assert (await locked.get("/live"))[0] == 200
    assert (await locked.get("/health"))[0] == 200


async def test_an_empty_key_file_opens_nothing(make_server):
    server = await make_server(keys=KeyRing(""))
    for headers in ({}, {"Authorization": "Bearer "}, {"api-key": ""}, {"x-api-key": ""}):
        assert (await server.get("/v1/models", **headers))[0] == 401


@pytest.mark.parametrize(
    ("auth", "cluster", "host", "required"),
    [
        ("auto", "local", "127.0.0.1", False),
        ("auto", "local", "localhost", False),
        ("auto", "local", "::1", False),
        ("auto", "local", "0.0.0.0", True),
        ("auto", "local", "10.1.2.3", True),
        ("auto", "local", "login1", True),
        ("auto", "slurm", "127.0.0.1", True),
        ("on", "local", "127.0.0.1", True),
        ("off", "slurm", "0.0.0.0", False),
    ],
)
def test_a_key_is_required_wherever_others_can_connect(auth, cluster, host, required):
    assert auth_required(Config(security=SecurityConfig(auth=auth)), cluster, host) is required
