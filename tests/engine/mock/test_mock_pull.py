import msgspec
import pytest

from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.transfer import LEASE_S, is_good, make_handle
from hpcserve.kv.hashing import hash_blocks
from hpcserve.types import KvHandle

BLOCK = 16  # of conftest


def prefill(virtual, num_tokens=200):
    """Run a prompt as a prefill worker would; return its handle and its token."""
    source = virtual()
    request = source.add(num_tokens, max_tokens=50, prefill_only=True)
    source.run()
    prefilled = source.prefilled[request]
    return source, make_handle("p", prefilled.num_tokens, prefilled.names, unix_now=1000.0), source.tokens(request)


def test_a_prefill_is_one_token_of_one_pass_and_names_its_blocks(virtual):
    source, handle, tokens = prefill(virtual)
    assert len(tokens) == 1
    assert source.now == pytest.approx(TimingModel().prefill_s(200)), "no decode step for the first token"
    assert handle.num_tokens == 200
    assert handle.params["hashes"] == hash_blocks(list(range(1000, 1200)), BLOCK)


def test_a_pulled_prompt_takes_the_transfer_and_one_decode_step(virtual):
    _, handle, tokens = prefill(virtual)
    target = virtual()
    request = target.add(200, max_tokens=5, kv=handle)
    target.run()
    first = target.outputs[request][0]
    assert (first.cached_tokens, first.pulled_tokens) == (0, 200)
    expected_s = TimingModel().transfer_s(200) + TimingModel().decode_s(200 / (1024 * BLOCK))
    assert target.times[request][0] == pytest.approx(expected_s)
    assert target.tokens(request)[:1] == tokens
    assert TimingModel().transfer_s(200) == pytest.approx(200 * 131072 / 50e9)


def test_pulled_blocks_are_in_the_local_cache_afterwards(virtual):
    _, handle, _ = prefill(virtual)
    target = virtual()
    target.add(200, max_tokens=1, kv=handle)
    target.run()
    assert target.cached_names() == set(handle.params["hashes"])
    again = target.add([*range(1000, 1200), 1], max_tokens=1)
    target.run()
    assert target.outputs[again][0].cached_tokens == 192


def test_only_what_is_missing_is_pulled(virtual):
    _, handle, _ = prefill(virtual)
    target = virtual()
    target.add(100, max_tokens=1)
    target.run()
    request = target.add(200, max_tokens=1, kv=handle)
    target.run()
    first = target.outputs[request][0]
    assert (first.cached_tokens, first.pulled_tokens) == (96, 104)


def test_tokens_beyond_the_handle_are_computed(virtual):
    _, handle, _ = prefill(virtual)
    target = virtual()
    request = target.add(300, max_tokens=1, kv=handle)
    target.run()
    assert target.outputs[request][0].pulled_tokens == 200
    expected_s = TimingModel().transfer_s(200) + TimingModel().prefill_s(100)
    assert target.times[request][0] == pytest.approx(expected_s)


def test_a_handle_of_another_prompt_helps_as_far_as_the_prompts_agree(virtual):
    _, handle, _ = prefill(virtual)
    target = virtual()
    request = target.add([*range(1000, 1050), *range(150)], max_tokens=1, kv=handle)
    stranger = target.add(range(200), max_tokens=1, kv=handle)
    target.run()
    assert target.outputs[request][0].pulled_tokens == 48
    assert target.outputs[stranger][0].pulled_tokens == 0
    assert target.core.load().pull_failures_total == 1


def test_a_pull_that_cannot_succeed_is_recomputed_and_counted(virtual):
    _, handle, tokens = prefill(virtual)
    target = virtual()
    request = target.add(200, max_tokens=5, kv=handle, can_pull=False)
    target.run()
    first = target.outputs[request][0]
    assert (first.cached_tokens, first.pulled_tokens) == (0, 0)
    assert target.tokens(request)[:1] == tokens
    assert target.times[request][0] == pytest.approx(TimingModel().prefill_s(200))
    assert target.core.load().pull_failures_total == 1


def test_pulls_share_the_link(virtual):
    handles = []
    for start in (0, 20_000):
        source = virtual()
        request = source.add(range(start, start + 8000), prefill_only=True)
        source.run()
        handles.append(make_handle("p", 8000, source.prefilled[request].names, 0.0))
    target = virtual()
    target.add(range(8000), max_tokens=1, kv=handles[0])
    second = target.add(range(20_000, 28_000), max_tokens=1, kv=handles[1])
    target.step()
    one_s = TimingModel().transfer_s(8000)
    assert [end for end, _, _ in sorted(target.core._scheduler._pulls)] == [one_s, 2 * one_s]
    target.run()
    assert target.times[second][0] >= 2 * one_s
    assert target.core.load().pulled_tokens_total == 16_000


def test_others_run_while_a_pull_is_under_way(virtual):
    _, handle, _ = prefill(virtual, 8000)
    target = virtual()
    other = target.add(range(20), max_tokens=20)
    pulling = target.add(8000, max_tokens=1, kv=handle)
    target.run()
    assert target.times[other][0] < target.times[pulling][0]


def test_aborting_a_pull_frees_its_blocks(virtual):
    _, handle, _ = prefill(virtual)
    target = virtual()
    request = target.add(200, max_tokens=5, kv=handle)
    target.step()
    assert target.core.load().kv_usage > 0
    assert target.core.load().waiting_tokens == 0, "pulled, not computed"
    assert target.core.abort(request)
    assert target.core.load().kv_usage == 0
    target.run()
    assert target.outputs[request] == []


def test_pulls_in_a_full_pool_wait_and_complete(virtual):
    _, handle, _ = prefill(virtual)
    target = virtual(num_blocks=16)
    ids = [target.add(200, max_tokens=20, kv=handle, cache_salt=None), target.add(range(150), max_tokens=60)]
    ids += [target.add([i, *range(100)], max_tokens=60) for i in range(5)]
    target.run()
    assert all(target.last(request).finish_reason == "length" for request in ids)


def test_handles_expire_and_can_be_made_to_fail():
    handle = make_handle("p", 32, [1, 2], unix_now=1000.0)
    assert is_good(handle, 1000.0 + LEASE_S - 1)
    assert not is_good(handle, 1000.0 + LEASE_S)
    assert not is_good(msgspec.structs.replace(handle, transport="nixl"), 1000.0)
    assert not is_good(msgspec.structs.replace(handle, params=handle.params | {"fail": True}), 1000.0)
    assert not is_good(KvHandle(transport="mock", source="p", num_tokens=1, params={}), 1000.0)


def test_handles_survive_the_wire():
    handle = make_handle("p", 32, [2**64 - 1, 2], unix_now=1000.0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(handle), type=KvHandle) == handle
