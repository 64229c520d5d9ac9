"""How the time of vLLM's steps is split, without an engine."""

from types import SimpleNamespace

import pytest

from hpcserve.engine.vllm.load import LoadMeter
from hpcserve.engine.vllm.steps import StepMeter
from hpcserve.types import RequestId


class Engine:
    """A meter on a clock of its own."""

    def __init__(self):
        self.meter = StepMeter()
        self.now = 100.0

    def step(self, seconds, *, prompt=0, decoding=0, kv_usage=0.5, is_busy=True):
        self.meter.begin(self.now)
        self.now += seconds
        self.meter.step(self.now, prompt_tokens=prompt, num_decoding=decoding, kv_usage=kv_usage, is_busy=is_busy)

    @property
    def work(self):
        return self.meter.work.done()


def test_each_chunk_of_a_prompt_is_a_pass():
    engine = Engine()
    engine.step(1.0, prompt=2048)
    engine.step(0.5, prompt=952)
    work = engine.work
    assert (work.prefill_passes, work.prefill_tokens) == (2, 3000)
    assert work.prefill_squares == 2048**2 + 952**2
    assert work.prefill_s == pytest.approx(1.5)
    assert work.decode_steps == 0


def test_decode_steps_count_with_the_cache_that_they_read():
    engine = Engine()
    for kv_usage in (0.25, 0.5):
        engine.step(0.01, decoding=8, kv_usage=kv_usage)
    work = engine.work
    assert (work.decode_steps, work.decode_kv_read) == (2, 0.75)
    assert work.decode_kv_squares == pytest.approx(0.25**2 + 0.5**2)
    assert (work.decode_s, work.prefill_passes) == (pytest.approx(0.02), 0)


def test_decoding_beside_a_prompt_is_taken_off_its_time():
    engine = Engine()
    engine.step(0.02, decoding=8)
    engine.step(0.12, prompt=1000, decoding=8)
    assert engine.work.prefill_s == pytest.approx(0.10)
    engine.step(0.03, prompt=100, decoding=8)
    assert engine.work.prefill_s == pytest.approx(0.115)


def test_neither_idle_time_nor_waiting_for_kv_counts():
    engine = Engine()
    engine.step(1.0, prompt=1000, is_busy=False)
    engine.now += 500.0
    engine.step(1.0, prompt=1000)
    engine.step(7.0)  # nothing was computed
    engine.step(1.0, prompt=1000)
    assert engine.work.prefill_s == pytest.approx(3.0)


def test_the_end_of_a_pulled_prompt_is_no_pass():
    engine = Engine()
    engine.step(0.05, prompt=1)
    assert engine.work == Engine().work


def stats_of(details=None, *, num_running=1):
    return SimpleNamespace(
        num_running_reqs=num_running, num_waiting_reqs=0, kv_cache_usage=0.1, iteration_details=details
    )


PREFILL = SimpleNamespace(num_ctx_tokens=300, num_generation_requests=0)


def test_vllms_statistics_end_up_in_the_report():
    meter = LoadMeter()
    meter.open(RequestId("a"), 300)
    meter.observe(stats_of(PREFILL), None)
    work = meter.report().work
    assert (work.prefill_passes, work.prefill_tokens) == (1, 300)
    assert work.prefill_s > 0


def test_a_step_that_is_told_of_late_does_not_hide_the_next_one():
    meter = LoadMeter()
    meter.open(RequestId("a"), 300)
    meter.observe(stats_of(PREFILL), None)
    meter.close(RequestId("a"))
    meter.open(RequestId("b"), 300)
    meter.observe(stats_of(num_running=0), None)  # the end of a's last step
    meter.observe(stats_of(PREFILL), None)
    assert meter.report().work.prefill_passes == 2


def test_the_time_after_the_last_request_does_not_count(monkeypatch):
    now = 100.0
    monkeypatch.setattr("hpcserve.engine.vllm.load.time.monotonic", lambda: now)
    meter = LoadMeter()
    meter.open(RequestId("a"), 300)
    now += 1.0
    meter.observe(stats_of(PREFILL), None)
    meter.close(RequestId("a"))
    now += 500.0
    meter.open(RequestId("b"), 300)
    now += 1.0
    meter.observe(stats_of(PREFILL), None)
    assert meter.report().work.prefill_s == pytest.approx(2.0)
