import itertools

import pytest

from hpcserve.config.models import RouterConfig
from hpcserve.router.router import Router
from hpcserve.types import (
    BlocksStored,
    KvEventBatch,
    RequestId,
    Role,
    RouteRequest,
    WorkerId,
    WorkerInfo,
    WorkerState,
)

BLOCK = 32


class Bench:
    """A router with workers, driven by short calls."""

    def __init__(self, **config):
        self.router = Router(RouterConfig(**config), BLOCK)
        self._ids = itertools.count()
        self._seq = {}

    def add(self, role, *names, state=WorkerState.READY, ends_at=None, engine=None):
        for name in names:
            info = WorkerInfo(
                worker=WorkerId(name), pool=role.value, role=role, state=state, ends_at=ends_at, engine=engine
            )
            self.router.update_worker(info)

    def store(self, worker, hashes):
        seq = self._seq[worker] = self._seq.get(worker, 0) + 1
        assert self.router.apply(KvEventBatch(worker=worker, seq=seq, events=[BlocksStored(list(hashes))]))

    def request(self, num_tokens=320, hashes=None, **fields):
        hashes = list(range(num_tokens // BLOCK)) if hashes is None else list(hashes)
        request_id = RequestId(f"r{next(self._ids)}")
        return RouteRequest(
            **{"request_id": request_id, "block_hashes": hashes, "num_tokens": num_tokens, "max_tokens": 16, **fields}
        )

    def assign(self, num_tokens=320, hashes=None, now=0.0, **fields):
        return self.router.assign(self.request(num_tokens, hashes, **fields), now)

    def total(self, field):
        return sum(getattr(load, field) for load in self.router.loads().values())


@pytest.fixture
def bench():
    return Bench


@pytest.fixture(params=["random", "round_robin", "least_loaded", "power_of_two", "session", "dynamo", "kv"])
def policy(request):
    return request.param


@pytest.fixture
def aggregated(policy):
    bench = Bench(policy=policy)
    bench.add(Role.BOTH, "a", "b", "c")
    return bench


@pytest.fixture
def disaggregated(policy):
    bench = Bench(policy=policy)
    bench.add(Role.PREFILL, "p0", "p1")
    bench.add(Role.DECODE, "d0", "d1", "d2")
    return bench
