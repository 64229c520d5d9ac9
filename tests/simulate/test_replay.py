"""The whole of a replay, against numbers that can be worked out by hand and against the steps of the scheduler."""

import msgspec
import pytest

from hpcserve.engine.mock.leap import LeapingScheduler
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.errors import ConfigError
from hpcserve.router.router import Router
from hpcserve.simulate import replay
from hpcserve.types import WorkerId

TIMING = TimingModel()
CACHE = 16384 * 64  # tokens


def decode_ms(*contexts):
    return 1000 * sum(TIMING.decode_s(context / CACHE) for context in contexts)


def test_one_request_takes_its_prefill_pass_and_its_decode_steps(scenario, ask):
    report = replay(scenario(), [ask(num_prompt=6400, num_output=100)])
    assert report.ttft_ms.mean == pytest.approx(1000 * TIMING.prefill_s(6400))
    expected_ms = 1000 * TIMING.prefill_s(6400) + decode_ms(*range(6401, 6500))
    assert report.e2e_ms.mean == pytest.approx(expected_ms)
    assert report.duration_s == pytest.approx(expected_ms / 1000)
    assert report.itl_ms.mean == pytest.approx(decode_ms(*range(6401, 6500)) / 99, rel=1e-6)
    assert report.output_tokens_per_s == pytest.approx(100 / report.duration_s)


def test_an_arrival_waits_for_the_step_that_runs_and_no_longer(scenario, ask):
    first = ask(num_prompt=640, num_output=1000)
    start_s = TIMING.prefill_s(640)
    ends = [start_s]
    for context in range(641, 660):
        ends.append(ends[-1] + decode_ms(context) / 1000)
    arrives_at = (ends[10] + ends[11]) / 2
    report = replay(scenario(), [first, ask(at=arrives_at, num_prompt=1000, num_output=1, first_id=100)])
    step_s = TIMING.prefill_s(1000) + decode_ms(652) / 1000
    expected_ms = 1000 * (ends[11] + step_s - arrives_at)
    assert report.ttft_ms.mean * 2 - start_s * 1000 == pytest.approx(expected_ms)


def test_a_cached_prefix_is_not_computed_again(scenario, ask):
    report = replay(scenario(), [ask(), ask(at=60.0, num_prompt=6401)])
    assert report.prefix_hit_ratio == pytest.approx(6400 / (6400 + 6401))
    assert report.ttft_ms.p50 == pytest.approx(500 * (TIMING.prefill_s(6400) + TIMING.prefill_s(1)))


def test_generated_tokens_are_cached_but_never_found(scenario, ask):
    report = replay(scenario(), [ask(num_output=2000), ask(at=60.0, num_prompt=12800)])
    assert report.prefix_hit_ratio == pytest.approx(6400 / (6400 + 12800))


def test_round_robin_takes_turns(scenario, ask):
    alone = replay(scenario(), [ask()])
    spread = replay(scenario(workers=4), [ask(first_id=100 * i) for i in range(4)])
    assert spread.e2e_ms.p99 == pytest.approx(alone.e2e_ms.mean)
    assert spread.worker_hours == pytest.approx(4 * alone.worker_hours)


def test_speed_brings_arrivals_together(scenario, ask):
    requests = [ask(), ask(at=60.0, first_id=100)]
    assert replay(scenario(speed=2.0), requests).duration_s == pytest.approx(
        replay(scenario(), requests).duration_s - 30.0
    )


def test_a_remote_prefill_is_pulled_and_the_first_token_decoded(scenario, ask):
    report = replay(scenario(prefill=1, decode=1), [ask(num_output=2)])
    assert report.remote_prefills == 1
    assert report.kv_pulled_tokens == 6400
    transfer_ms = 1000 * 6400 * 131072 / 50e9
    assert report.ttft_ms.mean == pytest.approx(1000 * TIMING.prefill_s(6400) + transfer_ms + decode_ms(6400))
    assert report.e2e_ms.mean == pytest.approx(report.ttft_ms.mean + decode_ms(6401))


def test_the_hits_of_a_remote_prefill_are_those_of_the_prefill_worker(scenario, ask):
    report = replay(scenario(prefill=1, decode=2), [ask(), ask(at=60.0, num_prompt=6401)])
    assert report.prefix_hit_ratio == pytest.approx(6400 / (6400 + 6401))


def test_short_prompts_stay_on_the_decode_worker(scenario, ask):
    report = replay(scenario(prefill=1, decode=1), [ask(num_prompt=100)])
    assert (report.remote_prefills, report.kv_pulled_tokens) == (0, 0)


def test_a_prompt_that_can_never_fit_is_rejected_and_counted(scenario, ask):
    report = replay(scenario(num_blocks=50, slo_ttft_ms=1e9), [ask(), ask(num_prompt=100)])
    assert (report.num_requests, report.num_rejected) == (1, 1)
    assert report.slo_attainment == 0.5


def test_goodput_counts_what_meets_both_objectives(scenario, ask):
    requests = [ask(num_prompt=100, num_output=50), ask(at=60.0, num_prompt=30_000, num_output=50, first_id=100)]
    assert replay(scenario(), requests).slo_attainment == 1
    assert replay(scenario(slo_ttft_ms=100), requests).slo_attainment == 0.5
    assert replay(scenario(slo_itl_ms=6.0), requests).slo_attainment == 0.5
    report = replay(scenario(slo_ttft_ms=100, slo_itl_ms=1.0), requests)
    assert (report.slo_attainment, report.goodput) == (0, 0)


@pytest.mark.parametrize("policy", ["random", "round_robin", "least_loaded", "power_of_two", "session", "kv"])
def test_the_same_replay_gives_the_same_report(scenario, conversations, policy):
    made = [replay(scenario(policy, workers=3, num_blocks=4096), conversations[:80]) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0].num_requests == 80


def test_a_late_index_finds_fewer_prefixes(scenario, conversations):
    prompt = replay(scenario("kv", workers=4), conversations)
    late = replay(scenario("kv", workers=4, event_delay_s=1000.0), conversations)
    assert prompt.prefix_hit_ratio > late.prefix_hit_ratio


@pytest.mark.parametrize(("seconds", "hit_ratio"), [(590.0, 0.5), (610.0, 0.0)])
def test_without_kv_events_a_prompt_is_found_where_it_was_placed_until_that_expires(scenario, ask, seconds, hit_ratio):
    report = replay(scenario("kv", workers=4, kv_events=False), [ask(), ask(at=seconds)])
    assert report.prefix_hit_ratio == pytest.approx(hit_ratio, abs=0.01)


@pytest.mark.parametrize(
    "fields", [{"num_blocks": 2600, "workers": 2, "speed": 4.0}, {"prefill": 1, "decode": 2}, {"workers": 3}]
)
def test_leaps_change_nothing(scenario, conversations, monkeypatch, fields):
    requests = conversations[:100]
    leaping = replay(scenario("kv", **fields), requests)
    monkeypatch.setattr(LeapingScheduler, "find_leap", lambda *_: None)
    stepping = replay(scenario("kv", **fields), requests)
    assert leaping.duration_s == pytest.approx(stepping.duration_s)
    for name in ("ttft_ms", "itl_ms", "e2e_ms"):
        ours, theirs = getattr(leaping, name), getattr(stepping, name)
        assert [ours.mean, ours.p50, ours.p99] == pytest.approx([theirs.mean, theirs.p50, theirs.p99])
    assert leaping.prefix_hit_ratio == stepping.prefix_hit_ratio
    assert leaping.kv_pulled_tokens == stepping.kv_pulled_tokens


def test_preempted_requests_are_finished_and_find_their_own_blocks(scenario, conversations):
    report = replay(scenario(num_blocks=2000, speed=20.0), conversations)
    assert report.num_requests == 200
    assert report.own_hit_ratio > report.first_hit_ratio


@pytest.mark.parametrize("fields", [{"workers": 0}, {"prefill": 1}, {"decode": 1}, {"speed": 0.0}])
def test_a_scenario_that_makes_no_sense_is_refused(scenario, ask, fields):
    with pytest.raises(ConfigError):
        replay(scenario(**fields), [ask()])


@pytest.fixture
def with_source(monkeypatch):
    """Have the router name a source for what it places after a time, in seconds."""
    place = Router.place

    def make(source, num_tokens, *, after=0.0):
        def name_source(self, now):
            source_tokens = num_tokens if now > after else 0
            return [
                msgspec.structs.replace(each, source=WorkerId(source), source_tokens=source_tokens)
                for each in place(self, now)
            ]

        monkeypatch.setattr(Router, "place", name_source)

    return make


@pytest.mark.parametrize(("offered", "pulled"), [(6400, 6400), (640, 640), (0, 0)])
def test_a_prefix_is_pulled_from_the_source_that_the_router_names(scenario, ask, with_source, offered, pulled):
    with_source("both-0", offered)
    report = replay(scenario(workers=2), [ask(num_output=1), ask(at=60.0, num_prompt=7000, num_output=1)])
    assert report.kv_pulled_tokens == pulled
    second_s = TIMING.transfer_s(pulled) + TIMING.prefill_s(7000 - pulled)
    assert report.ttft_ms.mean == pytest.approx(500 * (TIMING.prefill_s(6400) + second_s))


def test_what_the_source_has_lost_is_computed(scenario, ask, with_source):
    with_source("both-1", 6400, after=-1.0)
    report = replay(scenario(workers=2), [ask(num_output=1)])
    assert report.kv_pulled_tokens == 0
    assert report.ttft_ms.mean == pytest.approx(1000 * TIMING.prefill_s(6400))


def test_a_flood_of_short_prompts_waits_no_longer_than_where_engines_batch_them(scenario, ask):
    requests = [ask(num_prompt=100, num_output=60, first_id=1000 * n) for n in range(200)]
    waiting, at_once = (replay(scenario(policy, workers=2), requests) for policy in ("kv", "least_loaded"))
    assert waiting.ttft_ms.mean < 1.1 * at_once.ttft_ms.mean
    assert waiting.duration_s < 1.2 * at_once.duration_s
