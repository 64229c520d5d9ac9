"""Time to first token of online requests beside a batch, in virtual time: whatever this machine does meanwhile."""

import pytest
from backfill_replay import Load, run

CASES = {
    "little": Load(rate=12),
    "much": Load(rate=32),
    "one worker": Load(workers=1, rate=6, seconds=60.0),
    "split pools": Load(prefill=2, rate=12),
}


@pytest.mark.parametrize("load", CASES.values(), ids=CASES.keys())
def test_a_batch_adds_less_than_a_fifth_to_the_first_token_of_nine_in_ten(load):
    alone, beside = run(load), run(load, 1500)
    assert beside.ttft(90) <= 1.2 * alone.ttft(90)
    assert beside.batch_per_s > 1


def test_without_online_requests_a_batch_has_all_workers():
    idle = run(Load(rate=0.1), 4000)
    busy = run(Load(rate=32), 500)
    assert idle.batch_per_s > 5 * busy.batch_per_s
