"""What learning the speed of workers is worth, in a whole replay."""

import msgspec
import pytest

from hpcserve.router.rates import Rates
from hpcserve.router.router import Router
from hpcserve.simulate import replay


@pytest.fixture
def rates_of(monkeypatch):
    """Fills with the router's rates once a replay has run."""
    seen = []
    init = Router.__init__

    def keep(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen.append(self._rates)

    monkeypatch.setattr(Router, "__init__", keep)
    return seen


@pytest.fixture
def load(conversations):
    """The excerpt twice, the second time in a minute and a half with other prefixes: time to learn in."""
    again = [
        msgspec.structs.replace(r, arrives_at=r.arrives_at + 80, hash_ids=tuple(h + 10**6 for h in r.hash_ids))
        for r in conversations
    ]
    return [*conversations, *again]


def test_one_slow_worker_among_four_hardly_shows_once_it_is_known(scenario, load, monkeypatch):
    slow = scenario("kv", workers=4, slow=((1, 4.0),))
    learning = replay(slow, load)
    monkeypatch.setattr(Rates, "report", lambda *_: None)
    blind = replay(slow, load)
    assert learning.ttft_ms.p90 < 0.9 * blind.ttft_ms.p90
    assert learning.e2e_ms.mean < 0.9 * blind.e2e_ms.mean


def test_the_speed_of_a_slow_worker_is_learned(scenario, load, rates_of):
    replay(scenario("kv", workers=4, slow=((1, 4.0),)), load)
    (rates,) = rates_of
    timings = [rates.of(f"both-{i}") for i in range(4)]
    assert [t.prefill_scale for t in timings] == pytest.approx([1, 4, 1, 1], rel=0.05)
    assert [t.decode_scale for t in timings] == pytest.approx([1, 4, 1, 1], rel=0.05)


def test_where_all_are_as_published_learning_changes_nothing(scenario, conversations, monkeypatch):
    made = scenario("kv", workers=3, num_blocks=4096)
    learning = replay(made, conversations)
    monkeypatch.setattr(Rates, "report", lambda *_: None)
    assert replay(made, conversations) == learning
