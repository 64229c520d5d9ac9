from pathlib import Path

import pytest

from hpcserve.config.models import RouterConfig
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.simulate import Scenario, TraceRequest, load_trace

EXCERPT = Path(__file__).parents[1] / "data" / "mooncake_conversation_200.jsonl"


@pytest.fixture
def excerpt():
    return EXCERPT


@pytest.fixture(scope="session")
def conversations():
    """The first 200 requests of a real trace: 77 s of it."""
    return load_trace(EXCERPT)


@pytest.fixture
def scenario():
    def make(policy="round_robin", num_blocks=16384, max_batched_tokens=8192, **fields):
        limits = Limits(num_blocks=num_blocks, block_size=64, max_num_seqs=256, max_batched_tokens=max_batched_tokens)
        return Scenario(router=RouterConfig(policy=policy), limits=limits, **fields)

    return make


@pytest.fixture
def ask():
    def make(at=0.0, num_prompt=6400, num_output=10, first_id=0):
        ids = tuple(range(first_id, first_id - (-num_prompt // 512)))
        return TraceRequest(arrives_at=at, num_prompt=num_prompt, num_output=num_output, hash_ids=ids)

    return make
