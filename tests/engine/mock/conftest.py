import itertools

import pytest

from hpcserve.engine.mock.core import MockCore
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.tokens import load_table
from hpcserve.types import BlocksRemoved, BlocksStored, EngineRequest, RequestId, Sampling

BLOCK = 16


class VirtualCore:
    """A core on a clock of its own, and everything that came out of it."""

    def __init__(self, *, num_blocks=1024, max_num_seqs=256, max_batched_tokens=8192, max_model_len=100_000):
        limits = Limits(
            num_blocks=num_blocks,
            block_size=BLOCK,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=max_batched_tokens,
        )
        self.core = MockCore(limits, TimingModel(), load_table(None), max_model_len)
        self.now = 0.0
        self.outputs = {}
        self.times = {}  # of each output's end, by request
        self.steps = []
        self.events = []
        self.prefilled = {}
        self._ids = itertools.count()

    def add(self, prompt, max_tokens=4, can_pull=True, sampling=None, **fields):
        """`prompt`: token ids, or a number of different ones."""
        token_ids = list(range(1000, 1000 + prompt)) if isinstance(prompt, int) else list(prompt)
        request = EngineRequest(
            request_id=RequestId(f"r{next(self._ids)}"),
            token_ids=token_ids,
            sampling=Sampling(max_tokens=max_tokens, **(sampling or {})),
            **fields,
        )
        problem = self.core.add(request, can_pull=can_pull)
        assert problem is None, problem
        self.outputs[request.request_id] = []
        self.times[request.request_id] = []
        return request.request_id

    def step(self):
        wakes_at = self.core.wakes_at(self.now)
        if wakes_at is None:
            return None
        self.now = wakes_at
        result = self.core.step(self.now)
        self.now += result.duration_s
        self.steps.append(result)
        self.events += result.events
        self.prefilled |= result.prefilled
        for output in result.outputs:
            self.outputs[output.request_id].append(output)
            self.times[output.request_id].append(self.now)
        return result

    def run(self, limit=100_000):
        for _ in range(limit):
            if self.step() is None:
                return self
        raise AssertionError("the core does not come to an end")

    def tokens(self, request_id):
        return [token for output in self.outputs[request_id] for token in output.token_ids]

    def text(self, request_id):
        return "".join(output.text for output in self.outputs[request_id])

    def last(self, request_id):
        return self.outputs[request_id][-1]

    def cached_names(self):
        """What the events say is cached."""
        names = set()
        for event in self.events:
            match event:
                case BlocksStored(hashes=stored):
                    names |= set(stored)
                case BlocksRemoved(hashes=removed):
                    names -= set(removed)
        return names


@pytest.fixture
def virtual():
    return VirtualCore
