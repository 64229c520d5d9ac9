"""/v1/files and /v1/batches over HTTP: the unmodified client, limits, forms of all kinds, and each key its own."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import openai
import pytest
from fake_keys import FakeKeys, record

from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.jobs import JobStore
from hpcserve.keys import TENANT_HEADER

LINE = b'{"custom_id": "a"}\n'


@pytest.fixture
def jobs(tmp_path):
    return JobStore(tmp_path / "jobs")


@pytest.fixture
async def server(make_server, jobs):
    return await make_server(jobs=jobs, batches={"max_file_mb": 0.5})


@pytest.fixture
async def client(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as made:
        yield made


def on_disk(jobs):
    return list((jobs.directory / "files").iterdir())


async def test_the_client_uploads_lists_reads_and_deletes_a_file(client, jobs):
    made = await client.files.create(file=("my.jsonl", LINE), purpose="batch")
    assert (made.object, made.bytes, made.filename, made.purpose, made.status) == (
        "file",
        len(LINE),
        "my.jsonl",
        "batch",
        "processed",
    )
    assert made.expires_at - made.created_at == 30 * 86400
    assert await client.files.retrieve(made.id) == made
    assert (await client.files.content(made.id)).content == LINE
    assert [each.id async for each in client.files.list()] == [made.id]
    deleted = await client.files.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError):
        await client.files.content(made.id)
    assert on_disk(jobs) == []


async def test_the_client_says_when_a_file_expires(client):
    made = await client.files.create(
        file=LINE, purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert made.expires_at - made.created_at == 7200
    with pytest.raises(openai.BadRequestError, match="seconds must be at least 3600"):
        await client.files.create(file=LINE, purpose="batch", expires_after={"anchor": "created_at", "seconds": 1})


async def test_the_client_goes_through_pages(client):
    made = [(await client.files.create(file=LINE, purpose="batch")).id for _ in range(5)]
    assert [each.id async for each in client.files.list(limit=2)] == made[::-1]
    assert [each.id async for each in client.files.list(limit=2, order="asc")] == made
    page = await client.files.list(limit=2, order="asc", after=made[0])
    assert [each.id for each in page.data] == made[1:3]
    assert page.has_more


async def test_the_client_makes_lists_and_cancels_batches(client):
    source = await client.files.create(file=LINE, purpose="batch")
    wanted = {"input_file_id": source.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    first = await client.batches.create(**wanted, metadata={"for": "me"})
    second = await client.batches.create(**wanted)
    assert (first.object, first.status, first.metadata) == ("batch", "validating", {"for": "me"})
    assert first.expires_at - first.created_at == 86400
    assert first.request_counts.model_dump() == {"total": 0, "completed": 0, "failed": 0}
    assert [each.id async for each in client.batches.list(limit=1)] == [second.id, first.id]
    cancelled = await client.batches.cancel(first.id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at
    assert (await client.batches.cancel(first.id)).cancelling_at == cancelled.cancelling_at
    with pytest.raises(openai.BadRequestError, match="which is not finished"):
        await client.files.delete(source.id)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"endpoint": "/v1/images"}, "endpoint must be"),
        ({"completion_window": "soon"}, "completion_window must be"),
        ({"input_file_id": "file-none"}, "there is no file"),
        ({"metadata": {"a": 5}}, "metadata.a must be a string"),
        ({"metadata": {str(n): "" for n in range(17)}}, "at most 16"),
        ({"priority": 1}, "unknown field"),
        ({"completion_window": None}, "completion_window is required"),
    ],
)
async def test_a_batch_that_cannot_be_is_refused(server, client, wrong, message):
    source = await client.files.create(file=LINE, purpose="batch")
    body = {"input_file_id": source.id, "endpoint": "/v1/completions", "completion_window": "24h", **wrong}
    status, answer = await server.post("/v1/batches", body)
    assert status in (400, 404)
    assert message in answer["error"]["message"]


async def post_form(server, **parts):
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in parts.items():
        form.add_field(name, value, filename="f" if isinstance(value, bytes) else None)
    async with server.http.post(f"{server.url}/v1/files", data=form) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"purpose": "batch"}, "file is required"),
        ({"file": LINE}, "purpose is required"),
        ({"file": LINE, "purpose": "fine-tune"}, "purpose must be 'batch'"),
        ({"file": b"", "purpose": "batch"}, "the file is empty"),
        ({"file": LINE, "purpose": "batch", "colour": "red"}, "unknown field 'colour'"),
        ({"file": LINE, "purpose": "b" * 2000}, "purpose is over 1024 bytes"),
    ],
)
async def test_forms_that_are_not_complete_or_have_more_are_refused(server, jobs, parts, message):
    status, answer = await post_form(server, **parts)
    assert status == 400
    assert message in answer["error"]["message"]
    assert on_disk(jobs) == []


async def test_a_file_over_the_limit_gets_a_413_and_leaves_nothing(server, jobs):
    status, answer = await post_form(server, purpose="batch", file=b"x" * 500_001)
    assert status == 413
    assert "0.5 MB (batches.max_file_mb)" in answer["error"]["message"]
    assert (await post_form(server, purpose="batch", file=b"x" * 500_000))[0] == 200
    assert len(on_disk(jobs)) == 1


async def test_a_file_over_the_limit_without_a_length_is_stopped_while_it_comes(server, jobs):
    async def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        while True:
            yield b"x" * 65536

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        async with server.http.post(f"{server.url}/v1/files", data=endless(), headers=headers) as response:
            assert response.status == 413
    except aiohttp.ClientConnectionError:
        pass  # the answer may be lost to a client that goes on writing
    async with asyncio.timeout(5):
        while on_disk(jobs):
            await asyncio.sleep(0.01)


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n'
FIELD = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
HOSTILE = {
    "nothing": b"",
    "no boundary in it": b"hello",
    "only a boundary": b"--b",
    "closed at once": b"--b--\r\n",
    "no end": PART + b"\r\nabc",
    "headers without end": PART + b"X: " + b"y" * 200_000,
    "many headers": PART + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\nabc\r\n--b--\r\n",
    "header that is none": b"--b\r\nnonsense\r\n\r\nabc\r\n--b--\r\n",
    "no disposition": b"--b\r\n\r\nabc\r\n--b--\r\n",
    "broken disposition": b'--b\r\nContent-Disposition: form-data; name="\r\n\r\nabc\r\n--b--\r\n',
    "length that is a lie": PART + b"Content-Length: 999999\r\n\r\nabc\r\n--b--\r\n",
    "length that is no number": PART + b"Content-Length: -5\r\n\r\nabc\r\n--b--\r\n",
    "nested": b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n",
    "base64": PART + b"Content-Transfer-Encoding: base64\r\n\r\n!!!!\r\n--b--\r\n",
    "bomb": PART + b"Content-Encoding: gzip\r\n\r\nabc\r\n--b--\r\n",
    "twice": (PART + b"\r\nabc\r\n") * 2 + b"--b--\r\n",
    "many": b"".join(FIELD % str(n).encode() + b"x\r\n" for n in range(500)) + b"--b--",
    "not text": FIELD % b"purpose" + b"\xff\xfe\r\n" + PART + b"\r\nx\r\n--b--\r\n",
    "charset": FIELD % b"_charset_" + b"utf-99\r\n" + PART + b"\r\nx\r\n--b--\r\n",
}


@pytest.mark.filterwarnings("ignore")  # aiohttp's, of forms that are broken
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_forms_that_nobody_should_send_are_refused_and_leave_nothing(server, jobs, body):
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    async with server.http.post(f"{server.url}/v1/files", data=body, headers=headers) as response:
        assert response.status == 400, await response.text()
        assert (await response.json())["error"]["message"]
    assert on_disk(jobs) == []


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "text/plain", ""])
async def test_bodies_that_are_no_form_are_refused(server, kind):
    async with server.http.post(f"{server.url}/v1/files", data=b"x", headers={"Content-Type": kind}) as response:
        assert response.status == 400


async def test_pages_of_other_sites_cannot_upload(server):
    form = aiohttp.FormData()
    form.add_field("file", LINE, filename="f")
    for origin, status in (("http://elsewhere.example", 400), (server.url, 400)):
        async with server.http.post(f"{server.url}/v1/files", data=form(), headers={"Origin": origin}) as response:
            text = await response.text()
            assert response.status == status
            assert ("other sites" in text) == (origin != server.url)


async def test_the_name_of_a_file_is_never_a_path(server, jobs):
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("purpose", "batch")
    form.add_field("file", LINE, filename="../../etc/passwd")
    async with server.http.post(f"{server.url}/v1/files", data=form) as response:
        assert (await response.json())["filename"] == "passwd"
    assert [each.name.startswith("file-") for each in on_disk(jobs)] == [True]
    for path in ("..%2Fjobs.sqlite", "%2e%2e/jobs.sqlite", "file-%00"):
        status, _ = await server.get(f"/v1/files/{path}/content")
        assert status == 404


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "limit=99999999999999999999999", "order=up", "nothing=1", "limit=1&limit=2"]
)
async def test_wrong_pages_are_refused(server, query):
    assert (await server.get(f"/v1/files?{query}"))[0] == 400


async def test_a_page_after_nothing_is_not_found(server):
    assert (await server.get("/v1/batches?after=batch_none"))[0] == 404


async def test_a_part_of_a_file_can_be_fetched(server, client):
    made = await client.files.create(file=b"0123456789", purpose="batch")
    headers = {"Range": "bytes=3-5"}
    async with server.http.get(f"{server.url}/v1/files/{made.id}/content", headers=headers) as response:
        assert (response.status, await response.read()) == (206, b"345")


@pytest.fixture
async def shared(make_server, jobs):
    keys = KeyRing(
        "sk-own", b"secret", FakeKeys(record("ann", "sk-ann", requests_per_minute=5), record("bob", "sk-bob"))
    )
    return await make_server(keys=keys, jobs=jobs)


async def test_every_key_sees_its_own_files_and_batches_only(shared):
    clients = {
        name: openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key=f"sk-{name}", max_retries=0)
        for name in ("ann", "bob", "own")
    }
    source = await clients["ann"].files.create(file=LINE, purpose="batch")
    wanted = {"input_file_id": source.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    made = await clients["ann"].batches.create(**wanted)
    for name in ("bob", "own"):
        other = clients[name]
        assert [each.id async for each in other.files.list()] == []
        assert [each.id async for each in other.batches.list()] == []
        for attempt in (
            other.files.retrieve(source.id),
            other.files.content(source.id),
            other.files.delete(source.id),
            other.batches.create(**wanted),
            other.batches.retrieve(made.id),
            other.batches.cancel(made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await attempt
    assert (await clients["ann"].batches.retrieve(made.id)).status == "validating"
    for each in clients.values():
        await each.close()


async def test_without_a_key_nothing_is_taken_or_told(shared):
    for method, path in (("POST", "/v1/files"), ("GET", "/v1/files"), ("GET", "/v1/batches"), ("POST", "/v1/batches")):
        async with shared.http.request(method, shared.url + path) as response:
            assert response.status == 401


async def ask(server, key, tenant):
    headers = {"Authorization": f"Bearer {key}", TENANT_HEADER: tenant}
    body = {"model": "mock", "prompt": "hi"}
    async with server.http.post(f"{server.url}/v1/completions", json=body, headers=headers) as response:
        return response.status


async def test_the_own_key_acts_for_tenants_without_their_limits_and_for_their_account(shared):
    for _ in range(7):
        assert await ask(shared, "sk-own", "ann") == 200
    assert shared.metrics.tenants["ann"].requests == 7
    assert shared.metrics.tenants["ann"].generated_tokens > 0
    salts = {each.cache_salt for each in shared.backend.requests}
    assert await ask(shared, "sk-ann", "ann") == 200  # none of those counted against its limit
    assert {each.cache_salt for each in shared.backend.requests} == salts


async def test_nobody_else_acts_for_others_and_nobody_for_those_who_are_gone(shared):
    assert await ask(shared, "sk-bob", "ann") == 200
    assert "ann" not in shared.metrics.tenants
    assert await ask(shared, "sk-own", "carl") == 401


async def test_a_deployment_without_batches_says_so(make_server):
    server = await make_server()
    for path in ("/v1/files", "/v1/batches"):
        status, answer = await server.get(path)
        assert status == 404
        assert "batches.enabled" in answer["error"]["message"]


async def test_a_store_that_fails_is_a_503(server, jobs):
    (jobs.directory / "jobs.sqlite").write_bytes(b"nonsense" * 1000)
    async with server.http.get(f"{server.url}/v1/files") as response:
        assert response.status == 503
        assert json.loads(await response.text())["error"]["code"] == "storage_failed"
        assert response.headers["Retry-After"]
