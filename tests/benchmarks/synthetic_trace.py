"""Writes a made-up trace in Mooncake's format, so that no policy is tuned to the recorded ones alone.

Run: python -m tests.benchmarks.synthetic_trace --out FILE [--requests 6000] [--sessions-per-s 1.2] [--seed 0]

Sessions begin as a Poisson process, without the recorded conversations' bursts. Each begins with one of a few system
prompts, some much more frequent than others, and goes on for some turns: a turn's prompt is the last one with its
answer and what the user adds, which at times is a document. The same arguments write the same bytes on every machine
of one Python version. With the defaults eight workers have something to do for 50 to 60 % of the time.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from hpcserve.simulate.trace import TRACE_BLOCK

SYSTEM_TOKENS = (700, 1800, 3000, 900, 5200, 2400, 1300, 4100, 600, 8300, 1600, 2900)  # most frequent first
MOST_PROMPT_TOKENS = 100_000
MEAN_TURNS = 3.0
MEAN_THINKING_S = 25.0
SHARE_OF_DOCUMENTS = 0.3  # of the turns
OUTPUT_TOKENS_PER_S = 120.0  # how soon an answer is taken to be there


class Session:
    """One conversation: its prompt so far, in tokens and hash ids."""

    def __init__(self, rng: random.Random, ids: Iterator[int], systems: list[list[int]]) -> None:
        kind = rng.choices(range(len(systems)), [1 / (rank + 1) for rank in range(len(systems))])[0]
        self._rng, self._ids = rng, ids
        self._full = list(systems[kind])  # hash ids of full blocks
        self._tokens = SYSTEM_TOKENS[kind]

    def turn(self) -> tuple[dict, float | None]:
        """Return the next request, but for its timestamp, and the seconds until the one after it, if there is one."""
        rng = self._rng
        is_document = rng.random() < SHARE_OF_DOCUMENTS
        self._grow(_length(rng, 9000, 0.7) if is_document else _length(rng, 150, 1.0))
        output = min(2000, _length(rng, 200, 0.8))
        hash_ids = [*self._full, next(self._ids)] if self._tokens % TRACE_BLOCK else list(self._full)
        request = {"input_length": self._tokens, "output_length": output, "hash_ids": hash_ids}
        self._grow(output)
        is_last = rng.random() < 1 / MEAN_TURNS or self._tokens > MOST_PROMPT_TOKENS
        return request, None if is_last else output / OUTPUT_TOKENS_PER_S + rng.expovariate(1 / MEAN_THINKING_S)

    def _grow(self, tokens: int) -> None:
        self._tokens += tokens
        self._full += itertools.islice(self._ids, self._tokens // TRACE_BLOCK - len(self._full))


def requests(num_requests: int, sessions_per_s: float, seed: int) -> Iterator[dict]:
    """Yield requests by arrival, as objects of the trace."""
    rng, ids, order = random.Random(seed), itertools.count(), itertools.count()
    systems = [list(itertools.islice(ids, tokens // TRACE_BLOCK)) for tokens in SYSTEM_TOKENS]
    coming: list[tuple[float, int, Session]] = []
    next_session = 0.0
    for _ in range(num_requests):
        while not coming or next_session <= coming[0][0]:
            heapq.heappush(coming, (next_session, next(order), Session(rng, ids, systems)))
            next_session += rng.expovariate(sessions_per_s)
        now, _, session = heapq.heappop(coming)
        request, pause_s = session.turn()
        if pause_s is not None:
            heapq.heappush(coming, (now + pause_s, next(order), session))
        yield {"timestamp": round(now * 1000), **request}


def _length(rng: random.Random, median: float, sigma: float) -> int:
    return max(1, round(median * rng.lognormvariate(0, sigma)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--sessions-per-s", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out is None:
        print("skipped: no trace is written without --out FILE")
        return
    lines = [json.dumps(request) + "\n" for request in requests(args.requests, args.sessions_per_s, args.seed)]
    args.out.write_text("".join(lines))
    print(f"{len(lines):,} requests in {json.loads(lines[-1])['timestamp'] / 1000:,.0f} s")


if __name__ == "__main__":
    main()
