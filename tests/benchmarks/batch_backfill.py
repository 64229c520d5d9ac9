"""What a batch costs online requests: their time to first token beside a running batch of the API, and without one.

    python -m tests.benchmarks.batch_backfill --workers 4 --rate 9 --phase 30

Deploys mock engines in real time and takes turns, as other work on the machine comes and goes: a phase of online
requests (Poisson arrivals, streamed) alone, one with a batch that could keep every engine busy, and again. The engines
are small, so that what is measured is waiting for them and not for this machine's CPU; `--slower 3 --rate 3` makes
them slow, too, for a machine that has other things to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from hpcserve.engine.mock.timing import TimingModel
from hpcserve.engine.mock.timing_file import TimingFile, write_timing

HPCSERVE = str(Path(sys.executable).with_name("hpcserve"))
_VOCABULARY = 256
_ENDS = ("completed", "failed", "expired", "cancelled")


@dataclass
class Phases:
    """What was measured in all phases of one kind."""

    ttft_ms: list[float] = field(default_factory=list)
    batch_requests: int = 0
    seconds: float = 0.0


class Bench:
    """One deployment under load."""

    def __init__(self, http: aiohttp.ClientSession, url: str, args: argparse.Namespace) -> None:
        self._http = http
        self._url = url
        self._args = args
        self._random = random.Random(args.seed)

    async def online(self, into: Phases) -> None:
        """Send requests for a phase, and wait for their ends."""
        began = time.monotonic()
        asked: list[asyncio.Task[float]] = []
        while time.monotonic() - began < self._args.phase:
            await asyncio.sleep(self._random.expovariate(self._args.rate))
            asked.append(asyncio.create_task(self._ask()))
        into.ttft_ms += await asyncio.gather(*asked)

    async def batch(self, file_id: str) -> str:
        """Start a batch and wait until it runs."""
        body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        batch_id = str((await self._json("POST", "/batches", json=body))["id"])
        while (await self.look(batch_id))["request_counts"]["completed"] < 20:
            await asyncio.sleep(0.2)
        return batch_id

    async def end(self, batch_id: str) -> None:
        """Cancel a batch and wait for its end."""
        await self._json("POST", f"/batches/{batch_id}/cancel")
        while (await self.look(batch_id))["status"] not in _ENDS:
            await asyncio.sleep(0.1)

    async def look(self, batch_id: str) -> dict[str, Any]:
        """Return a batch as it is."""
        return await self._json("GET", f"/batches/{batch_id}")

    async def upload(self, num_lines: int) -> str:
        """Upload an input and return its id."""
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", b"".join(self._line(number) for number in range(num_lines)), filename="in.jsonl")
        return str((await self._json("POST", "/files", data=form))["id"])

    def _line(self, number: int) -> bytes:
        prompt = [self._random.randrange(_VOCABULARY) for _ in range(self._args.batch_prompt)]
        body = {"model": "mock", "prompt": prompt, "max_tokens": self._args.batch_output, "ignore_eos": True}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    async def _ask(self) -> float:
        """Return the milliseconds to the first token."""
        prompt = [self._random.randrange(_VOCABULARY) for _ in range(self._args.prompt)]
        body = {"model": "mock", "prompt": prompt, "max_tokens": self._args.output, "stream": True, "ignore_eos": True}
        began, first = time.perf_counter(), 0.0
        async with self._http.post(f"{self._url}/completions", json=body) as response:
            assert response.status == 200, await response.text()
            async for _ in response.content:
                first = first or time.perf_counter()
        return (first - began) * 1000

    async def _json(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        async with self._http.request(method, self._url + path, **sent) as response:
            assert response.status == 200, await response.text()
            return dict(await response.json())


async def measure(url: str, args: argparse.Namespace) -> dict[str, Phases]:
    found = {"without": Phases(), "with": Phases()}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        bench = Bench(http, url, args)
        file_id = await bench.upload(args.lines)
        await bench.online(Phases())  # engines' speeds are learned from it
        for number in range(args.rounds):
            await bench.online(found["without"])
            batch_id = await bench.batch(file_id)
            before, began = (await bench.look(batch_id))["request_counts"]["completed"], time.monotonic()
            await bench.online(found["with"])
            batch = await bench.look(batch_id)
            assert batch["status"] == "in_progress", f"{batch['status']}: give more --lines"
            found["with"].batch_requests += batch["request_counts"]["completed"] - before
            found["with"].seconds += time.monotonic() - began
            await bench.end(batch_id)
            print(f"round {number + 1}: {table(found)}", flush=True)
    return found


def table(found: dict[str, Phases]) -> str:
    parts = []
    for percent in (50, 90, 99):
        without, beside = (percentile(found[name].ttft_ms, percent) for name in ("without", "with"))
        parts.append(f"p{percent} {without:.0f} -> {beside:.0f} ms ({beside / without:.2f} x)")
    rate = found["with"].batch_requests / found["with"].seconds
    return f"TTFT {', '.join(parts)}; batch {rate:.1f} requests/s; {len(found['with'].ttft_ms)} online requests"


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=9.0, help="online requests a second")
    parser.add_argument("--prompt", type=int, default=1500, help="tokens of an online prompt")
    parser.add_argument("--output", type=int, default=60, help="tokens of an online answer")
    parser.add_argument("--batch-prompt", type=int, default=300)
    parser.add_argument("--batch-output", type=int, default=60)
    parser.add_argument("--lines", type=int, default=8000)
    parser.add_argument("--phase", type=float, default=30.0, help="seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slower", type=float, default=1.0, help="how many times as long engines take as published")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--up", nargs=argparse.REMAINDER, default=[], help="further options of `hpcserve up`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hb-") as root:
        others = {name: value for name, value in os.environ.items() if not name.startswith("HPCSERVE_")}
        env = others | {"HPCSERVE_STATE_DIR": f"{root}/state"}
        up = [HPCSERVE, "up", "--detach", "--json", "--port", "0", "--cluster", "local", "--engine", "mock"]
        up += ["--nodes", str(args.workers), "--set", "engine.mock.max_num_seqs=32"]
        timing = TimingModel().times(args.slower)
        write_timing(Path(root, "timing.json"), TimingFile(prefill_ms=timing.prefill_ms, decode_ms=timing.decode_ms))
        up += ["--set", "engine.mock.num_kv_blocks=2048", "--set", f"engine.mock.timing={root}/timing.json", *args.up]
        status = json.loads(subprocess.run(up, env=env, check=True, capture_output=True, timeout=120).stdout)
        try:
            found = asyncio.run(measure(status["endpoint"], args))
        finally:
            subprocess.run([HPCSERVE, "down", "--force"], env=env, check=True, capture_output=True, timeout=60)
    ratio = percentile(found["with"].ttft_ms, 90) / percentile(found["without"].ttft_ms, 90)
    print(f"TTFT p90 beside a batch: {ratio:.2f} x of without (target: at most 1.2 x)")


if __name__ == "__main__":
    main()
