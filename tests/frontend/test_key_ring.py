from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_keys import FakeClock, FakeKeys, record

from hpcserve.errors import DeploymentError, RateLimited, Unauthorized
from hpcserve.frontend.access.key_ring import KeyRing
from hpcserve.keys import KeyFile
from hpcserve.state import StateDir


class Ring(KeyRing):
    """A ring on clocks of the test's own."""

    def __init__(self, *records, own_key="sk-own", source=None, secret=b"secret"):
        self.clock = FakeClock()
        self.wall = FakeClock()
        self.keys = source or FakeKeys(*records)
        super().__init__(own_key, secret, self.keys, clock=self.clock, wall_clock=self.wall)

    async def opens(self, key: str) -> bool:
        try:
            await self.find(key)
        except Unauthorized:
            return False
        return True


async def test_a_key_is_found_with_its_tenant():
    ring = Ring(record("alice", "sk-a", priority=2), record("bob", "sk-b"))
    assert [(await ring.find(key)).name for key in ("sk-own", "sk-a", "sk-b")] == ["default", "alice", "bob"]
    assert not await ring.opens("sk-c")
    assert not await ring.opens("")


async def test_changes_of_the_file_count_within_a_second_and_without_a_restart():
    ring = Ring(record("alice", "sk-a"))
    ring.keys.change(record("bob", "sk-b"))
    ring.clock.now += 0.9
    assert (await ring.opens("sk-a"), await ring.opens("sk-b")) == (True, False)
    ring.clock.now += 0.1
    assert (await ring.opens("sk-a"), await ring.opens("sk-b")) == (False, True)


async def test_the_file_is_looked_at_once_a_second_however_many_requests_come():
    ring = Ring(record("alice", "sk-a"))
    ring.clock.now += 5
    await asyncio.gather(*(ring.find("sk-a") for _ in range(50)))
    assert ring.keys.num_reads == 2


async def test_a_file_that_cannot_be_read_leaves_the_keys_as_they_were_and_is_logged_once(caplog):
    ring = Ring(record("alice", "sk-a"))
    ring.keys.broken = "keys.json is damaged"
    for _ in range(3):
        ring.clock.now += 1
        assert await ring.opens("sk-a")
    assert [each.getMessage() for each in caplog.records] == ["the keys stay as they were: keys.json is damaged"]
    ring.keys.broken = ""
    ring.keys.change()
    ring.clock.now += 1
    assert not await ring.opens("sk-a")


async def test_a_file_that_is_damaged_from_the_start_is_refused(tmp_path: Path):
    state = StateDir(tmp_path)
    KeyFile(state).path.write_text("[{]")
    with pytest.raises(DeploymentError, match=r"keys\.json is damaged"):
        KeyRing("sk-own", b"", KeyFile(state))


async def test_a_key_opens_until_it_expires_and_says_so_then():
    ring = Ring(record("alice", "sk-a", expires=2000.0))
    ring.wall.now = 1999.9
    assert await ring.opens("sk-a")
    ring.wall.now = 2000.0
    with pytest.raises(Unauthorized, match="'alice' expired on 1970-01-01"):
        await ring.find("sk-a")


async def test_what_was_used_is_remembered_over_changes_of_the_file():
    ring = Ring(record("alice", "sk-a", requests_per_minute=1, max_concurrent=5))
    async with (await ring.find("sk-a")).meter.running():
        pass
    ring.keys.change(record("alice", "sk-a", requests_per_minute=1, max_concurrent=4), record("bob", "sk-b"))
    ring.clock.now += 1
    with pytest.raises(RateLimited):
        async with (await ring.find("sk-a")).meter.running():
            pass
    async with (await ring.find("sk-b")).meter.running():
        pass


async def test_new_limits_count_at_once():
    ring = Ring(record("alice", "sk-a", requests_per_minute=1))
    async with (await ring.find("sk-a")).meter.running():
        pass
    ring.keys.change(record("alice", "sk-a", requests_per_minute=2))
    ring.clock.now += 1
    async with (await ring.find("sk-a")).meter.running():
        pass


async def test_the_file_is_really_read_again(tmp_path: Path):
    state = StateDir(tmp_path)
    keys = KeyFile(state)
    ring = Ring(source=keys)
    alice = keys.add("alice", now=0)
    ring.clock.now += 1
    assert (await ring.find(alice)).name == "alice"
    bob = keys.add("bob", now=0)
    keys.revoke("alice")
    ring.clock.now += 1
    assert (await ring.opens(alice), await ring.opens(bob)) == (False, True)
    keys.path.unlink()
    ring.clock.now += 1
    assert not await ring.opens(bob)


# --- salts --------------------------------------------------------------------------------------------------------


async def test_no_two_tenants_have_a_salt_in_common_whatever_they_ask_for():
    ring = Ring(record("a", "sk-a"), record("ab", "sk-ab"), record("b", "sk-b"))
    tenants = [await ring.find(key) for key in ("sk-own", "sk-a", "sk-ab", "sk-b")]
    asked = [None, "=", "a", "b", "ab", "bb", "default", *(each.salt_of(None) for each in tenants)]
    salts = {each.salt_of(salt) for each in tenants for salt in asked}
    assert len(salts) == len(tenants) * len(asked)
    assert None not in salts


async def test_salts_stay_the_same_over_restarts_and_differ_between_deployments():
    salts = [
        (await Ring(record("a", "sk-a"), secret=secret).find("sk-a")).salt_of(None) for secret in (b"x", b"x", b"y")
    ]
    assert salts[0] == salts[1] != salts[2]


async def test_shared_prefixes_leave_the_clients_salt_as_it_is():
    tenant = await Ring(record("a", "sk-a"), secret=None).find("sk-a")
    assert (tenant.salt_of(None), tenant.salt_of("mine")) == (None, "mine")


# --- priorities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "asked", "effective"),
    [(0, None, 0), (0, -5, 0), (0, 5, 5), (-3, None, -3), (-3, -9, -3), (-3, 0, 0), (4, None, 4), (4, 0, 4), (4, 9, 9)],
)
async def test_nobody_runs_ahead_of_its_class(priority, asked, effective):
    tenant = await Ring(record("a", "sk-a", priority=priority)).find("sk-a")
    assert tenant.priority_of(asked) == effective


async def test_the_deployments_own_key_may_ask_for_any_priority():
    tenant = await Ring().find("sk-own")
    assert [tenant.priority_of(asked) for asked in (None, -7, 7)] == [0, -7, 7]
