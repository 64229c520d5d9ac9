"""Batches of the API from their records to their files, against an endpoint that does as prompts say."""

from __future__ import annotations

import asyncio
import json
import time

import msgspec
import pytest
from fake_endpoint import fake_endpoint

from hpcserve.batch import Endpoint
from hpcserve.batch.uploaded import BatchRunner, Target
from hpcserve.config.service_models import BatchesConfig
from hpcserve.errors import DeploymentError
from hpcserve.jobs import BatchRecord, FileRecord, JobStore, new_batch_id, new_file_id
from hpcserve.keys import OWNER
from hpcserve.state import StateDir

NOW = 1_000_000


def line(custom_id, prompt, **fields):
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "mock", "messages": messages, "max_tokens": 4, **fields.pop("body", {})}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}


class World:
    """A store, an endpoint, and runners that come and go."""

    def __init__(self, store, fake, **batches):
        self.store = store
        self.fake = fake
        self.now = float(NOW)
        self.keys = None
        self.config = BatchesConfig(**batches)
        self.is_served = True
        self._running = None

    def add(self, lines, tenant=OWNER, **fields):
        content = "".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in lines).encode()
        source = FileRecord(
            id=new_file_id(), tenant=tenant, filename="in", purpose="batch", bytes=len(content), created_at=NOW
        )
        with self.store.files.blobs.writer(source.id, 10**9) as writer:
            writer.write(content)
            writer.keep()
        self.store.files.add(source)
        record = BatchRecord(
            id=new_batch_id(),
            tenant=tenant,
            endpoint="/v1/chat/completions",
            input_file_id=source.id,
            completion_window="24h",
            created_at=NOW,
            expires_at=NOW + 86400,
            **fields,
        )
        self.store.batches.add(record)
        return record

    async def find_target(self):
        if not self.is_served:
            raise DeploymentError("nothing is served")
        return Target(Endpoint(self.fake.url), {"mock": 1000}, 8)

    def start(self):
        runner = BatchRunner(self.store, self.config, self.find_target, self.keys, clock=lambda: self.now)
        self._running = asyncio.create_task(runner.run())

    async def stop(self):
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))

    def look(self, record):
        return self.store.batches.get(record.tenant, record.id)

    async def until(self, record, condition):
        async with asyncio.timeout(20):
            while not condition(now := self.look(record)):
                assert not (now.is_final and condition is not is_final), now
                await asyncio.sleep(0.02)
        return now

    async def end(self, record):
        if self._running is None or self._running.done():
            self.start()
        return await self.until(record, is_final)

    def lines(self, file_id):
        if file_id is None:
            return {}
        read = [json.loads(each) for each in self.store.files.blobs.path(file_id).read_bytes().splitlines()]
        found = {each["custom_id"]: each for each in read}
        assert len(found) == len(read)
        return found


def is_final(record):
    return record.is_final


@pytest.fixture
async def world(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcserve.batch.uploaded.runner._LOOK_S", 0.02)
    monkeypatch.setattr("hpcserve.batch.uploaded.runner._RETRY_S", 0.05)
    monkeypatch.setattr("hpcserve.batch.uploaded.job._WATCH_S", 0.02)
    monkeypatch.setattr("hpcserve.batch.run._GROUP_S", 0.02)
    async with fake_endpoint() as fake:
        made = World(JobStore(tmp_path / "jobs"), fake)
        yield made
        await made.stop()


async def test_a_batch_becomes_two_files_and_counts_what_is_in_them(world):
    done = await world.end(world.add([line("a", "hello"), line("b", "bad one"), line("c", "bye")]))
    assert done.status == "completed"
    assert (done.counts.total, done.counts.completed, done.counts.failed) == (3, 2, 1)
    assert {name: each["response"]["body"]["text"] for name, each in world.lines(done.output_file_id).items()} == {
        "a": "HELLO",
        "c": "BYE",
    }
    assert world.lines(done.error_file_id)["b"]["response"]["status_code"] == 400
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    output = world.store.files.get(OWNER, done.output_file_id, NOW)
    assert output.purpose == "batch_output"
    assert output.filename == f"{done.id}_output.jsonl"
    async with asyncio.timeout(5):
        while list((world.store.directory / "running").iterdir()):
            await asyncio.sleep(0.02)


async def test_requests_of_batches_never_go_before_online_ones(world):
    lines = [line("a", "x"), line("b", "y", body={"priority": -5}), line("c", "z", body={"priority": 200})]
    await world.end(world.add(lines))
    assert sorted(body["priority"] for body in world.fake.bodies) == [100, 100, 200]


async def test_everything_that_is_wrong_is_told_with_its_line_and_nothing_is_sent(world):
    lines = [
        line("a", "x"),
        "not json\n",
        line("a", "again"),
        line("b", "x", url="/v1/completions", body={"prompt": "x"}),
        line("c", "x", body={"temperature": "hot"}),
        line("d", "x", body={"model": "other"}),
        line("e", "x", body={"max_tokens": 5000}),
        "\n",
        line("f", "x", body={"stream": True}),
    ]
    done = await world.end(world.add(lines))
    assert done.status == "failed"
    assert done.failed_at
    assert [(each.line, each.code) for each in done.errors] == [
        (2, "invalid_line"),
        (3, "duplicate_custom_id"),
        (4, "mismatched_endpoint"),
        (5, "invalid_request"),
        (6, "model_not_found"),
        (7, "context_length_exceeded"),
        (9, "invalid_request"),
    ]
    assert not world.fake.bodies


@pytest.mark.parametrize(("lines", "code"), [([], "empty_file"), (["\n\n"], "empty_file")])
async def test_a_file_without_requests_fails(world, lines, code):
    done = await world.end(world.add([*lines, ""]))
    assert [each.code for each in done.errors] == [code]


async def test_a_batch_with_more_lines_than_allowed_fails(world):
    world.config = BatchesConfig(max_lines=3)
    fits, over = (world.add([line(str(n), "x") for n in range(num)]) for num in (3, 4))
    assert (await world.end(fits)).status == "completed"
    assert [each.code for each in (await world.end(over)).errors] == ["too_many_requests"]


async def test_a_runner_that_dies_loses_nothing_and_repeats_nothing_that_counts(world):
    lines = [line(str(n), f"slow {n}" if n >= 10 else f"quick {n}") for n in range(20)]
    record = world.add(lines)
    world.start()
    await world.until(record, lambda now: now.counts.completed == 10)
    await world.stop()
    assert world.look(record).status == "in_progress"
    world.fake.released.set()
    done = await world.end(record)
    assert done.status == "completed"
    assert set(world.lines(done.output_file_id)) == {str(n) for n in range(20)}
    assert all(world.fake.asked[f"quick {n}"] == 1 for n in range(10))


async def test_a_runner_that_dies_while_results_become_files_makes_them_once(world):
    record = world.add([line("a", "x")])
    done = await world.end(record)
    await world.stop()
    world.store.batches.change(
        record.id, lambda now: msgspec.structs.replace(now, status="finalizing", output_file_id=None)
    )
    output = world.store.working_directory(record.id) / "output.jsonl"
    output.write_bytes(world.store.files.blobs.path(done.output_file_id).read_bytes())
    again = await world.end(record)
    assert (again.status, again.output_file_id) == ("completed", done.output_file_id)
    assert set(world.lines(again.output_file_id)) == {"a"}


async def test_cancelling_ends_what_runs_at_once_and_keeps_what_was_answered(world):
    record = world.add([line("a", "x"), line("b", "slow y")])
    world.start()
    await world.until(record, lambda now: now.counts.completed == 1)
    asked_at = time.monotonic()
    world.store.batches.change(
        record.id, lambda now: msgspec.structs.replace(now, status="cancelling", cancelling_at=NOW)
    )
    done = await world.end(record)
    assert time.monotonic() - asked_at < 5
    assert done.status == "cancelled"
    assert done.cancelled_at
    assert set(world.lines(done.output_file_id)) == {"a"}
    assert done.error_file_id is None
    assert (done.counts.total, done.counts.completed, done.counts.failed) == (2, 1, 0)


async def test_a_batch_that_nobody_has_looked_at_can_be_cancelled(world):
    record = world.add([line("a", "x")], status="cancelling", cancelling_at=NOW)
    world.is_served = False
    done = await world.end(record)
    assert (done.status, done.output_file_id) == ("cancelled", None)


async def test_at_the_end_of_its_window_a_batch_keeps_its_answers_and_the_rest_is_said_to_have_expired(world):
    record = world.add([line("a", "x"), *(line(f"s{n}", f"slow {n}") for n in range(30))])
    world.start()
    await world.until(record, lambda now: now.counts.completed == 1)
    world.now = record.expires_at + 1
    done = await world.end(record)
    assert done.status == "expired"
    assert done.expired_at == record.expires_at + 1
    assert set(world.lines(done.output_file_id)) == {"a"}
    rest = world.lines(done.error_file_id)
    assert set(rest) == {f"s{n}" for n in range(30)}
    assert {each["error"]["code"] for each in rest.values()} == {"batch_expired"}
    assert (done.counts.total, done.counts.completed, done.counts.failed) == (31, 1, 30)


async def test_a_batch_that_expires_before_anything_was_served_expires(world):
    world.is_served = False
    record = world.add([line("a", "x")])
    world.now = record.expires_at + 1
    done = await world.end(record)
    assert done.status == "expired"


async def test_only_so_many_batches_run_at_once_and_tenants_take_turns(world, tmp_path):
    world.config = BatchesConfig(max_active=1)
    first = world.add([line("a", "slow one")], tenant=OWNER)
    second, third = world.add([line("b", "x")]), world.add([line("c", "x")])
    world.start()
    await world.until(first, lambda now: now.status == "in_progress")
    await world.until(third, lambda now: now.is_checked)
    assert world.look(second).status == world.look(third).status == "validating"
    world.fake.released.set()
    assert [(await world.end(each)).status for each in (first, second, third)] == ["completed"] * 3


async def test_a_batch_waits_while_nothing_is_served_and_goes_on_then(world):
    world.is_served = False
    record = world.add([line("a", "x")])
    world.start()
    await asyncio.sleep(0.2)
    assert world.look(record).status == "validating"
    world.is_served = True
    assert (await world.end(record)).status == "completed"


class Keys:
    def __init__(self, *records):
        self.records = records

    def read(self):
        return self.records


async def test_a_key_that_was_revoked_ends_its_batches(world):
    world.keys = Keys()
    done = await world.end(world.add([line("a", "x")], tenant="ann"))
    assert (done.status, [each.code for each in done.errors]) == ("failed", ["key_revoked"])
    assert not world.fake.bodies


async def test_a_key_that_is_not_good_for_a_model_is_told_so_before_anything_is_sent(world, tmp_path):
    from hpcserve.keys import KeyFile

    state = StateDir(tmp_path / "state")
    state.create()
    world.keys = KeyFile(state)
    world.keys.add("ann", now=0.0, models=["other"])
    done = await world.end(world.add([line("a", "x")], tenant="ann"))
    assert [(each.code, each.line) for each in done.errors] == [("model_not_found", 1)]


async def test_without_keys_tenants_do_not_matter(world):
    assert (await world.end(world.add([line("a", "x")], tenant=OWNER))).status == "completed"


async def test_results_that_somebody_changed_fail_the_batch(world):
    record = world.add([line("a", "x"), line("b", "slow y")])
    world.start()
    await world.until(record, lambda now: now.counts.completed == 1)
    await world.stop()
    (world.store.directory / "running" / record.id / "output.jsonl").write_bytes(b"x" * 500)
    done = await world.end(record)
    assert (done.status, [each.code for each in done.errors]) == ("failed", ["results_changed"])


async def test_files_that_have_expired_are_deleted(world):
    done = await world.end(world.add([line("a", "x")]))
    await world.stop()
    world.now += 31 * 86400
    world.start()
    async with asyncio.timeout(10):
        while world.store.files.blobs.path(done.output_file_id).exists():
            await asyncio.sleep(0.02)
