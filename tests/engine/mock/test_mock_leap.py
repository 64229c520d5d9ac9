"""Leaps against steps: whatever mix of requests, the times, events and blocks have to be the same."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from hpcserve.engine.mock.leap import LeapingScheduler
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.engine.mock.sequence import Sequence
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.types import BlocksStored, RequestId

BLOCK = 16
LIMITS = Limits(num_blocks=60, block_size=BLOCK, max_num_seqs=4, max_batched_tokens=64)


class Countdown:
    def __init__(self, num_left, base):
        self.num_left = num_left
        self._base = base

    def write(self):
        self.num_left -= 1
        return self.num_left == 0

    def name_block(self, index):
        return self._base + index


def drive(arrivals, *, leaps):
    """Return ends by request, all names stored or removed, and leaps. `arrivals`: (s, prompt, output, pull tokens)."""
    scheduler = LeapingScheduler(LIMITS, TimingModel())
    waiting = sorted(enumerate(arrivals), key=lambda item: item[1][0])
    now, ends, names, num_leaps = 0.0, {}, [], 0

    def note(events):
        names.extend((isinstance(event, BlocksStored), name) for event in events for name in event.hashes)

    while True:
        while waiting and waiting[0][1][0] <= now:
            index, (_, num_prompt, num_output, pull_tokens) = waiting.pop(0)
            prompt = [1000 * (num_prompt % 3) + i for i in range(num_prompt // BLOCK)]
            writer = Countdown(num_output, 10_000 * (index + 1))
            scheduler.add(
                Sequence(RequestId(str(index)), num_prompt, prompt, writer, pull_tokens=min(pull_tokens, num_prompt))
            )
        arrives_at = waiting[0][1][0] if waiting else float("inf")
        wakes_at = scheduler.wakes_at(now)
        if wakes_at != now:
            now = min(arrives_at, float("inf") if wakes_at is None else wakes_at)
            if now == float("inf"):
                return ends, names, num_leaps
            continue
        leap = scheduler.find_leap(now) if leaps else None
        if leap is not None:
            num_leaps += 1
            num_steps = leap.begun_before(arrives_at)
            note(scheduler.leap(leap, num_steps))
            now = leap.ends[num_steps - 1]
        else:
            step = scheduler.step(now)
            note(step.events)
            now += step.duration_s
            ends |= {sequence.request_id: now for sequence in step.finished}


requests = st.tuples(
    st.floats(0, 0.5, allow_subnormal=False), st.integers(1, 200), st.integers(1, 120), st.sampled_from([0, 0, 32, 200])
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(requests, min_size=1, max_size=8))
def test_leaps_are_the_steps_they_stand_for(arrivals):
    leaping, leaping_names, _ = drive(arrivals, leaps=True)
    stepping, stepping_names, _ = drive(arrivals, leaps=False)
    assert leaping == stepping
    assert leaping_names == stepping_names
    assert len(leaping) == len(arrivals)


def test_most_steps_of_a_long_answer_are_leapt():
    _, _, num_leaps = drive([(0.0, 100, 500, 0)], leaps=True)
    assert 0 < num_leaps <= 500 // BLOCK + 2


def test_a_leap_is_cut_where_somebody_arrives():
    scheduler = LeapingScheduler(LIMITS, TimingModel())
    scheduler.add(Sequence(RequestId("a"), 17, [1], Countdown(100, 500)))
    now = scheduler.step(0.0).duration_s
    leap = scheduler.find_leap(now)
    assert leap is not None
    middle = (leap.ends[3] + leap.ends[4]) / 2
    assert leap.begun_before(middle) == 5
    assert leap.begun_before(leap.ends[3]) == 4
    assert leap.begun_before(now) == 1
    assert leap.begun_before(1e9) == len(leap.ends)


def test_nobody_leaps_over_a_prompt_that_lacks_one_token():
    scheduler = LeapingScheduler(LIMITS, TimingModel())
    scheduler.add(Sequence(RequestId("a"), 65, [1, 2, 3, 4], Countdown(9, 500)))
    now = scheduler.step(0.0).duration_s
    assert scheduler.find_leap(now) is None
    assert scheduler.step(now).duration_s == pytest.approx(TimingModel().prefill_s(1))
