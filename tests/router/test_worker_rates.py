"""What is learned from reports: right where they are true, harmless where they are not."""

import math

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from hpcserve.router.evidence import SPREAD
from hpcserve.router.rates import FADE, Rates
from hpcserve.router.timing import Timing, decode_steps_ms, passes_ms
from hpcserve.types import LoadReport, Role, WorkDone

PRIOR = Timing(pull_tokens_per_s=350_000.0, pull_latency_ms=5.0)


class Worker:
    """An engine that computes `factor` times as long as published, and says so."""

    def __init__(self, rates, name, factor=1.0, pool="both"):
        self.rates, self.name, self.factor = rates, name, factor
        self.work = WorkDone()
        rates.open(name, pool)

    def compute(self, *prompts, steps=0, share=0.25):
        """Run a pass for each of `prompts` (tokens) and some decode steps, and report."""
        squares = sum(n * n for n in prompts)
        prefill_ms = self.factor * passes_ms(len(prompts), sum(prompts), squares)
        decode_ms = self.factor * decode_steps_ms(steps, share * steps, share**2 * steps)
        old = self.work
        self.work = WorkDone(
            prefill_passes=old.prefill_passes + len(prompts),
            prefill_tokens=old.prefill_tokens + sum(prompts),
            prefill_squares=old.prefill_squares + squares,
            prefill_s=old.prefill_s + prefill_ms / 1000,
            decode_steps=old.decode_steps + steps,
            decode_kv_read=old.decode_kv_read + share * steps,
            decode_kv_squares=old.decode_kv_squares + share**2 * steps,
            decode_s=old.decode_s + decode_ms / 1000,
        )
        self.report(work=self.work)

    def report(self, **fields):
        self.rates.report(self.name, LoadReport(**fields))

    @property
    def timing(self):
        return self.rates.of(self.name)

    @property
    def scale(self):
        return self.timing.prefill_scale


@pytest.fixture
def rates():
    return Rates(PRIOR)


def test_nothing_reported_is_the_prior(rates):
    assert rates.of("unknown") == Worker(rates, "a").timing == PRIOR
    rates.report("unknown", LoadReport(work=WorkDone(prefill_passes=1, prefill_tokens=1, prefill_s=1.0)))
    assert rates.of("unknown") == PRIOR


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0, 12.0])
def test_a_factor_is_learned_whatever_the_lengths_of_the_prompts(rates, factor):
    worker = Worker(rates, "a", factor)
    for _ in range(40):
        worker.compute(100, 900, steps=20)
    assert worker.scale == pytest.approx(factor, rel=0.05)
    assert worker.timing.decode_scale == pytest.approx(factor, rel=0.05)
    long_ms = passes_ms(1, 8000, 8000**2)
    assert worker.timing.prefill_ms(8000) == pytest.approx(factor * long_ms, rel=0.05)


def test_an_engine_as_published_is_taken_for_just_that(rates):
    worker = Worker(rates, "a")
    for tokens in (3, 70, 8192, 500):
        worker.compute(tokens, steps=7)
        assert (worker.scale, worker.timing.decode_scale) == (1.0, 1.0)


def test_a_far_slower_machine_is_learned_too(rates):
    worker = Worker(rates, "a", 300.0)
    for _ in range(150):
        worker.compute(500)
    assert worker.scale == pytest.approx(300, rel=0.1)


def test_drift_is_followed(rates):
    worker = Worker(rates, "a")
    for _ in range(100):
        worker.compute(8000)
    worker.factor = 2.0
    for _ in range(150):
        worker.compute(8000)
    assert worker.scale == pytest.approx(2.0, rel=0.02)


def test_fast_and_slow_workers_are_told_apart(rates):
    workers = [Worker(rates, f"w{i}", factor) for i, factor in enumerate((1.0, 1.0, 3.0, 3.0))]
    for _ in range(100):
        for worker in workers:
            worker.compute(2000)
    assert [w.scale for w in workers] == pytest.approx([1, 1, 3, 3], rel=0.05)


def test_a_newcomer_is_taken_for_the_median_of_its_pool_or_else_of_all(rates):
    for i in range(3):
        worker = Worker(rates, f"p{i}", 2.0, pool="prefill")
        for _ in range(30):
            worker.compute(2000)
    assert Worker(rates, "p9", pool="prefill").scale == pytest.approx(2, rel=0.05)
    assert Worker(rates, "d0", pool="decode").scale == pytest.approx(2, rel=0.05)
    slow = Worker(rates, "s0", 8.0, pool="slow")
    for _ in range(60):
        slow.compute(2000)
    assert Worker(rates, "s1", pool="slow").scale == pytest.approx(8, rel=0.1)


def test_one_outlier_moves_the_scale_little(rates):
    worker = Worker(rates, "a")
    for _ in range(60):
        worker.compute(2000)
    worker.factor = 500.0
    worker.compute(2000)
    assert worker.scale < 1.1


def test_one_report_weighs_no_more_than_a_second_of_work(rates):
    worker = Worker(rates, "a")
    for _ in range(30):
        worker.compute(8000)
    worker.factor = 4.0
    worker.compute(*[8000] * 100)
    assert 1.2 < worker.scale < 1.8


def test_a_slow_first_pass_is_soon_forgotten(rates):
    worker = Worker(rates, "a", 500.0)  # compiles
    worker.compute(100)
    worker.factor = 1.0
    for _ in range(10):
        worker.compute(1000)
    assert worker.scale < 1.3


def test_a_worker_that_was_slow_once_is_tried_again(rates):
    workers = [Worker(rates, f"w{i}") for i in range(4)]
    workers[0].factor = 10.0
    for _ in range(60):
        for worker in workers:
            worker.compute(2000)
    assert workers[0].scale > 9
    rounds = 0
    while workers[0].scale > 2.0 and rounds < 2000:
        for worker in workers[1:]:
            worker.compute(2000)
        rounds += 1
    assert 100 < rounds < 2000


def test_what_was_learned_stays_while_nobody_measures_anything(rates):
    worker = Worker(rates, "a", 3.0)
    for _ in range(60):
        worker.compute(2000)
    for _ in range(round(10 / (1 - FADE))):
        worker.report(work=worker.work)
    assert worker.scale == pytest.approx(3.0, rel=0.05)


def test_nobody_is_believed_to_be_of_another_world(rates):
    workers = [Worker(rates, f"w{i}") for i in range(5)]
    workers[0].factor, workers[1].factor = 900.0, 0.0015
    for _ in range(100):
        for worker in workers:
            worker.compute(2000)
    slow, fast, *others = [w.scale for w in workers]
    assert SPREAD * 0.9 < slow <= SPREAD
    assert 1 / SPREAD <= fast < 2 / SPREAD
    assert others == [1, 1, 1]
    workers[0].factor = 1.0
    for _ in range(300):
        workers[0].compute(8000)
    assert workers[0].scale < 2


def test_a_counter_that_falls_is_a_new_beginning(rates):
    worker = Worker(rates, "a", 2.0)
    for _ in range(60):
        worker.compute(2000)
    worker.work = WorkDone()
    worker.report()
    worker.compute(2000)
    assert worker.scale == pytest.approx(2.0, rel=0.05)


def test_measured_pulls_of_the_receiver_win_over_the_configured(rates):
    a, b = Worker(rates, "a"), Worker(rates, "b")
    a.report(pull_tokens_per_s=100_000.0, pull_latency_ms=80.0)
    assert a.timing.pull_ms(10_000) == pytest.approx(180.0)
    assert b.timing.pull_ms(10_000) == PRIOR.pull_ms(10_000)
    a.report(pull_latency_ms=20.0)
    assert a.timing.pull_ms(35_000) == pytest.approx(120.0, rel=0.02)


def test_pulls_that_were_slow_once_are_tried_again(rates):
    a, b = Worker(rates, "a"), Worker(rates, "b")
    slow = {"pull_tokens_per_s": 1000.0, "pull_latency_ms": 5000.0, "pulled_tokens_total": 64}
    for _ in range(1500):
        a.report(**slow)
        b.compute(100)
    assert a.timing.pull_ms(1000) < 10 * PRIOR.pull_ms(1000)
    a.report(**slow | {"pulled_tokens_total": 128})
    assert a.timing.pull_ms(1000) == pytest.approx(6000, rel=0.02)


ABSURD = [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e30, 1e300, 5e-324, 10**400, -(10**30)]
NUMBERS = st.sampled_from(ABSURD) | st.floats() | st.integers(-(10**40), 10**40)
NAMES = WorkDone.__struct_fields__


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.dictionaries(st.sampled_from(NAMES), NUMBERS), NUMBERS, NUMBERS), max_size=20))
def test_nonsense_neither_raises_nor_starves_a_worker_nor_feeds_it_everything(reports):
    rates = Rates(PRIOR)
    liar, *others = [Worker(rates, f"w{i}") for i in range(4)]
    for _ in range(10):
        for other in others:
            other.compute(2000, steps=50)
    for lies, rate, latency in reports:
        work = msgspec.structs.replace(WorkDone(), **lies)
        liar.report(work=work, pull_tokens_per_s=rate, pull_latency_ms=latency)
        for other in others:
            other.compute(2000, steps=3)
    for scale in (liar.timing.prefill_scale, liar.timing.decode_scale):
        assert 0.99 / SPREAD <= scale <= 1.01 * SPREAD
    assert all(other.timing == PRIOR for other in others)
    assert 0 <= liar.timing.pull_ms(1000) <= 10_000 + 1000 * PRIOR.pull_ms(1000)
    liar.work = WorkDone()
    liar.report()
    for _ in range(450):
        liar.compute(8000)
    assert liar.scale == pytest.approx(1.0, rel=0.05)


def test_a_removed_worker_is_forgotten(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "a", "b")
    worker = Worker(made.router._rates, "a", 4.0)
    for _ in range(30):
        worker.compute(2000)
    assert worker.scale > 3.5
    made.router.remove_worker("a")
    assert worker.scale == 1.0


def test_requests_go_to_the_faster_worker(bench):
    made = bench(policy="kv")
    made.add(Role.BOTH, "slow", "fast")
    for name, factor in (("slow", 4.0), ("fast", 1.0)):
        worker = Worker(made.router._rates, name, factor)
        for _ in range(30):
            worker.compute(2000)
    placed = [made.assign(num_tokens=2000, hashes=range(100 * i, 100 * i + 62)).decode for i in range(10)]
    assert 1 <= placed.count("slow") <= 3
