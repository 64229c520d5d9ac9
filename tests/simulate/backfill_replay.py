"""Online requests beside a batch, in virtual time: what `test_backfill_replay.py` checks and a benchmark prints."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count

import msgspec

from hpcserve.config.models import RouterConfig
from hpcserve.engine.mock.scheduler import Limits
from hpcserve.simulate.event_loop import replay_records
from hpcserve.simulate.scenario import Scenario
from hpcserve.simulate.trace import TRACE_BLOCK, TraceRequest

BATCH = 100


@dataclass(frozen=True)
class Load:
    """Requests that come at random, and as many of a batch as there is room for."""

    workers: int = 4
    rate: float = 9.0  # online, a second, on all workers together
    prompt: int = 1500
    output: int = 120
    batch_prompt: int = 400
    batch_output: int = 120
    seconds: float = 20.0
    policy: str = "kv"
    prefill: int = 0  # of the workers; the others decode
    seed: int = 0

    @property
    def scenario(self) -> Scenario:
        limits = Limits(num_blocks=4096, block_size=64, max_num_seqs=256, max_batched_tokens=8192)
        router = RouterConfig.model_validate({"policy": self.policy})
        if self.prefill:
            return Scenario(prefill=self.prefill, decode=self.workers - self.prefill, limits=limits, router=router)
        return Scenario(workers=self.workers, limits=limits, router=router)

    def online(self) -> list[TraceRequest]:
        chance, ids = random.Random(self.seed), count()
        found, at = [], 0.0
        while (at := at + chance.expovariate(self.rate)) < self.seconds:
            found.append(_request(at, self.prompt, self.output, ids))
        return found

    def batch(self, num: int) -> list[TraceRequest]:
        ids = count(10_000_000)
        requests = (_request(2.0, self.batch_prompt, self.batch_output, ids) for _ in range(num))
        return [msgspec.structs.replace(each, priority=BATCH) for each in requests]


@dataclass(frozen=True)
class Found:
    """Seconds to the first token of online requests, in order, and requests of the batch that ended meanwhile."""

    ttft_s: list[float]
    batch_per_s: float

    def ttft(self, percent: float) -> float:
        return self.ttft_s[int(len(self.ttft_s) * percent / 100)]


def run(load: Load, num_batch: int = 0) -> Found:
    trace = sorted(load.online() + load.batch(num_batch), key=lambda request: request.arrives_at)
    records = replay_records(load.scenario, trace)
    online = [each for each in records if each.priority == 0]
    assert all(each.ended_at is not None for each in records)
    ended = sum(each.priority == BATCH and each.ended_at < load.seconds for each in records)
    assert not num_batch or ended < num_batch, "the batch was over too soon"
    return Found(sorted(each.ttft_s for each in online), ended / load.seconds)


def _request(at: float, num_prompt: int, num_output: int, ids: count[int]) -> TraceRequest:
    num_ids = -(-num_prompt // TRACE_BLOCK)
    return TraceRequest(at, num_prompt, num_output, tuple(next(ids) for _ in range(num_ids)))


def main() -> None:
    """Print a table over fleets and loads: `python -m tests.simulate.backfill_replay`."""
    for workers, prefill, policy in ((1, 0, "kv"), (4, 0, "kv"), (4, 2, "kv"), (8, 0, "kv"), (4, 0, "least_loaded")):
        for per_worker in (1.0, 3.0, 6.0, 9.0):
            load = Load(workers=workers, rate=per_worker * workers, policy=policy, prefill=prefill, seconds=60.0)
            alone, beside = run(load), run(load, 3500 * workers)
            ratios = ", ".join(f"p{each} {beside.ttft(each) / alone.ttft(each):.2f} x" for each in (50, 90, 99))
            p90_ms = " -> ".join(f"{each.ttft(90) * 1000:.0f}" for each in (alone, beside))
            fleet = f"{workers} workers ({prefill} prefill), {policy}"
            print(
                f"{fleet}: {load.rate:.0f}/s: {ratios}; p90 {p90_ms} ms; batch {beside.batch_per_s:.1f}/s", flush=True
            )


if __name__ == "__main__":
    main()
