"""The prefix index against Dynamo's radix tree on a recorded trace, and alone at 1,024 workers and 10 million blocks.

    python tests/benchmarks/prefix_index.py --trace conversation.jsonl.gz --dynamo-python dynamo-venv/bin/python

`--trace` (or $HPCSERVE_TRACE) names a Mooncake trace; without one a made-up trace of the same shape is used.
`--dynamo-python` (or $HPCSERVE_DYNAMO_PYTHON) names a Python that has `ai-dynamo` installed; without it only our half
is run. Both halves get the same events and look-ups, each in processes of their own, in turns. The best run of each
counts; the ratio of the medians stands beside it: Dynamo hands each call to a thread, and how long that takes depends
on what else runs. An event is one call of each one's index: `RadixTree.apply_event`, which takes JSON, and
`PrefixIndex.store` or `remove`. What comes before that here (MessagePack decoding, sequence numbers) is timed too, and
shown beside it. Memory is the growth of the process's resident set while the blocks are stored.

This file runs under Dynamo's Python too: nothing but the standard library at the top.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROUNDS = 5
TARGETS = {"lookup_us": 1 / 3, "store_us": 1 / 2, "remove_us": 1 / 2, "bytes_a_block": 1.0}
FROM_BYTES = {"store_from_bytes_us": "store_us", "remove_from_bytes_us": "remove_us"}  # ours, and Dynamo's beside it
BIG_WORKERS, BIG_BLOCKS, PROMPT_BLOCKS, SHARED_BLOCKS = 1024, 10_000_000, 1024, 64

Plan = dict  # {"stores": [(worker, parent or None, hashes)], "removes": […], "lookups": [hashes], "blocks": int}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default=os.environ.get("HPCSERVE_TRACE"))
    parser.add_argument("--dynamo-python", default=os.environ.get("HPCSERVE_DYNAMO_PYTHON"))
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--half", choices=sorted(HALVES), help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.half:
        plan = json.loads(args.plan.read_text()) if args.plan else {}
        print(json.dumps(HALVES[args.half](plan)))
        return
    for path in (args.trace, args.dynamo_python):
        if path and not Path(path).exists():
            parser.error(f"there is no {path}")
    compare(args.trace, args.dynamo_python, args.workers, args.rounds)
    show_big(run_half(sys.executable, "big"))


# --- the comparison ---------------------------------------------------------------------------------------------


def compare(trace: str | None, dynamo_python: str | None, workers: int, rounds: int) -> None:
    plan = make_plan(read_trace(trace) if trace else made_up_trace(), workers)
    events, lookups = len(plan["stores"]), len(plan["lookups"])
    average = sum(len(hashes) for _, _, hashes in plan["stores"]) / events
    print(
        f"trace: {Path(trace).name if trace else 'made up (see --trace)'}, {lookups:,} look-ups over {workers} workers,"
    )
    print(f"{events:,} events of {average:.1f} blocks, {plan['blocks']:,} different blocks; best of {rounds} runs")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "plan.json")
        path.write_text(json.dumps(plan))
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(run_half(sys.executable, "ours", path) | run_half(sys.executable, "bytes", path))
            if dynamo_python:
                theirs.append(run_half(dynamo_python, "dynamo", path))
    if not theirs:
        show_ours(best(ours))
        return
    if ours[0]["answers"] != theirs[0]["answers"]:
        raise SystemExit(f"the answers differ: {ours[0]['answers']} here, {theirs[0]['answers']} in Dynamo")
    show_ratios(best(ours), best(theirs), median(ours), median(theirs))


def read_trace(path: str) -> list[list[int]]:
    """Return the block ids of each request. An id stands for its whole prefix."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt") as lines:
        return [json.loads(line)["hash_ids"] for line in lines]


def made_up_trace() -> list[list[int]]:
    """Return 12,000 prompts: one shared block, then a conversation of 400 turns, then blocks of their own."""
    rng = random.Random(1)
    fresh = iter(range(1, 10**9))
    turns: list[list[int]] = [[0]]
    for _ in range(12_000):
        start = rng.choice(turns[-400:]) if rng.random() < 0.4 else [0]
        turns.append(start + [next(fresh) for _ in range(rng.randint(1, 30))])
    return turns[1:]


def make_plan(prompts: list[list[int]], workers: int) -> Plan:
    """Place each prompt on a random worker: a look-up, and an event for what that worker lacks. Then evict it all."""
    rng = random.Random(2)
    name = {block: rng.getrandbits(64) for prompt in prompts for block in prompt}
    held: list[set[int]] = [set() for _ in range(workers)]
    stores, lookups = [], []
    for prompt in prompts:
        hashes = [name[block] for block in prompt]
        lookups.append(hashes)
        worker = rng.randrange(workers)
        first = next((i for i, block in enumerate(hashes) if block not in held[worker]), len(hashes))
        if first < len(hashes):
            stores.append((worker, hashes[first - 1] if first else None, hashes[first:]))
            held[worker].update(hashes)
    removes = [(worker, None, hashes[::-1]) for worker, _, hashes in reversed(stores)]
    return {"stores": stores, "removes": removes, "lookups": lookups, "blocks": len(name), "workers": workers}


def run_half(python: str, half: str, plan: Path | None = None) -> dict:
    command = [python, __file__, "--half", half, *(["--plan", str(plan)] if plan else [])]
    environment = {**os.environ, "DYN_LOG": "error"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return json.loads(done.stdout.splitlines()[-1])


def best(runs: list[dict]) -> dict:
    return {key: min(run[key] for run in runs) for key in runs[0]}


def median(runs: list[dict]) -> dict:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def show_ours(ours: dict) -> None:
    for key in (*TARGETS, *FROM_BYTES):
        print(f"  {key:20} {ours[key]:8.1f}")
    print(
        "for the other half: pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1 in an environment of its"
    )
    print("own, with what `import dynamo.llm` then asks for; pass its Python as --dynamo-python")


def show_ratios(ours: dict, theirs: dict, ours_median: dict, theirs_median: dict) -> None:
    print(f"  {'':20} {'hpcserve':>10} {'Dynamo':>10} {'ratio':>8} {'of medians':>11} {'target':>8}")
    for key in (*TARGETS, *FROM_BYTES):
        other = FROM_BYTES.get(key, key)
        ratio = ours[key] / theirs[other]
        line = f"  {key:20} {ours[key]:10.1f} {theirs[other]:10.1f} {ratio:8.2f}"
        line += f" {ours_median[key] / theirs_median[other]:11.2f}"
        if key in TARGETS:
            line += f" {TARGETS[key]:8.2f}  {'met' if ratio <= TARGETS[key] else 'MISSED'}"
        print(line)


# --- the halves, each in a process of its own --------------------------------------------------------------------


def half_dynamo(plan: Plan) -> dict:
    from dynamo.llm import RadixTree

    def stored(parent: int | None, hashes: list[int]) -> dict:
        return {"stored": {"parent_hash": parent, "blocks": [{"block_hash": h, "tokens_hash": h} for h in hashes]}}

    def encoded(data: dict) -> bytes:
        return json.dumps({"event_id": 0, "data": data}, separators=(",", ":")).encode()

    tree = RadixTree()
    stores = [(worker, encoded(stored(parent, hashes))) for worker, parent, hashes in plan["stores"]]
    removes = [(worker, encoded({"removed": {"block_hashes": hashes}})) for worker, _, hashes in plan["removes"]]
    return measured(
        plan,
        lambda: [tree.apply_event(worker, event) for worker, event in stores],
        lambda: [tree.apply_event(worker, event) for worker, event in removes],
        lambda hashes: tree.find_matches(hashes).scores,
    )


def half_ours(plan: Plan) -> dict:
    """The index alone."""
    from hpcserve.router.index import PrefixIndex

    names = [f"both-{i}-a91f" for i in range(plan["workers"])]
    stores = [(names[worker], hashes) for worker, _, hashes in plan["stores"]]
    removes = [(names[worker], hashes) for worker, _, hashes in plan["removes"]]
    index = PrefixIndex()
    result = measured(
        plan,
        lambda: [index.store(worker, hashes) for worker, hashes in stores],
        lambda: [index.remove(worker, hashes) for worker, hashes in removes],
        index.overlaps,
    )
    del result["bytes_a_block"]  # the plan holds the hashes too: see half_bytes
    return result


def half_bytes(plan: Plan) -> dict:
    """What the router does with the events as they come in, and the memory that is then used."""
    import msgspec

    from hpcserve.router.events import EventLog
    from hpcserve.router.index import PrefixIndex
    from hpcserve.types import BlocksRemoved, BlocksStored, KvEventBatch, WorkerId

    names = [WorkerId(f"both-{i}-a91f") for i in range(plan["workers"])]
    index = PrefixIndex()
    log = EventLog(index)
    seqs = dict.fromkeys(names, 0)
    for worker in names:
        log.open(worker)

    def encoded(worker: WorkerId, event: BlocksStored | BlocksRemoved) -> bytes:
        seqs[worker] += 1
        return msgspec.msgpack.encode(KvEventBatch(worker=worker, seq=seqs[worker], events=[event]))

    stores = [encoded(names[worker], BlocksStored(hashes)) for worker, _, hashes in plan["stores"]]
    removes = [encoded(names[worker], BlocksRemoved(hashes)) for worker, _, hashes in plan["removes"]]
    decode = msgspec.msgpack.Decoder(KvEventBatch).decode
    result = measured(
        plan,
        lambda: [log.apply(decode(event)) for event in stores],
        lambda: [log.apply(decode(event)) for event in removes],
        index.overlaps,
    )
    return {
        "store_from_bytes_us": result["store_us"],
        "remove_from_bytes_us": result["remove_us"],
        "bytes_a_block": result["bytes_a_block"],
    }


def measured(plan: Plan, store: Callable, remove: Callable, find: Callable[[list[int]], dict]) -> dict:
    """Return microseconds a call, bytes a block, and a sum over all answers for comparing the two."""
    lookups, events = plan["lookups"], len(plan["stores"])
    gc.collect()
    before = resident_bytes()
    store_s = seconds(store)
    find(lookups[0])  # should events be applied behind the caller's back: they are now
    grown = resident_bytes() - before
    lookup_s = min(seconds(lambda: [find(hashes) for hashes in lookups]) for _ in range(3))
    answers = sum(sum(find(hashes).values()) for hashes in lookups)
    remove_s = seconds(remove)
    if any(find(hashes) for hashes in lookups):
        raise SystemExit("blocks are left after all were removed")
    return {
        "lookup_us": lookup_s / len(lookups) * 1e6,
        "store_us": store_s / events * 1e6,
        "remove_us": remove_s / events * 1e6,
        "bytes_a_block": grown / plan["blocks"],
        "answers": answers,
    }


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident_bytes() -> int:
    """Return what is in use: free memory that the allocator keeps goes back to the system first."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- 1,024 workers and 10 million blocks --------------------------------------------------------------------------


def half_big(_: Plan) -> dict:
    """Every prompt begins with the blocks that all workers hold, and is held by four workers, to different depths."""
    from hpcserve.router.index import PrefixIndex

    rng = random.Random(3)
    index = PrefixIndex()
    longest_s = 0.0

    def store(worker: int, hashes: Sequence[int]) -> None:
        nonlocal longest_s
        longest_s = max(longest_s, seconds(lambda: index.store(f"both-{worker}", hashes)))

    started = time.perf_counter()
    shared = [rng.getrandbits(64) for _ in range(SHARED_BLOCKS)]
    for worker in range(BIG_WORKERS):
        store(worker, shared)
    samples = []
    while len(index) < BIG_BLOCKS:
        prompt = shared + [rng.getrandbits(64) for _ in range(PROMPT_BLOCKS - SHARED_BLOCKS)]
        store(rng.randrange(BIG_WORKERS), prompt)
        for _ in range(3):
            store(rng.randrange(BIG_WORKERS), prompt[: rng.randrange(SHARED_BLOCKS, PROMPT_BLOCKS)])
        if rng.random() < 0.2:
            samples.append(prompt)
    result = {"blocks": len(index), "build_s": time.perf_counter() - started, "longest_store_ms": longest_s * 1e3}
    rng.shuffle(samples)
    result["shared by all, then by four"] = percentiles(index.overlaps, samples)
    alone = [prompt[SHARED_BLOCKS:] for prompt in samples]
    result["held by four only (960 blocks)"] = percentiles(index.overlaps, alone)
    unknown = [[rng.getrandbits(64) for _ in range(PROMPT_BLOCKS)] for _ in range(500)]
    result["held by nobody"] = percentiles(index.overlaps, unknown)
    for worker in range(BIG_WORKERS):
        store(worker, unknown[0][: worker + 1])
    result["each worker to another depth"] = percentiles(index.overlaps, [unknown[0]] * 500)
    result["drop_ms"] = seconds(lambda: index.drop("both-0")) * 1e3
    result["resident_mb"] = resident_bytes() / 1e6
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return result


def percentiles(call: Callable, arguments: list) -> list[float]:
    """Return the median and the 99th percentile in microseconds, the better of three passes."""
    passes = []
    for _ in range(3):
        taken = sorted(seconds(lambda argument=argument: call(argument)) * 1e6 for argument in arguments)
        passes.append([taken[len(taken) // 2], taken[len(taken) * 99 // 100]])
    return [min(column) for column in zip(*passes, strict=True)]


def show_big(result: dict) -> None:
    print(f"{BIG_WORKERS:,} workers, {result['blocks']:,} blocks, prompts of {PROMPT_BLOCKS:,} blocks:")
    for key, value in result.items():
        if isinstance(value, list):
            print(f"  {key:32} p50 {value[0]:7.1f} us   p99 {value[1]:7.1f} us   {value[1] / 200:5.2f} of the target")
    print(f"  resident {result['resident_mb']:.0f} MB, {result['resident_mb'] / 2000:.2f} of the target", end="; ")
    print(f"peak {result['peak_mb']:.0f} MB (both with a fifth of the prompts as lists)")
    print(f"  built in {result['build_s']:.0f} s, longest store {result['longest_store_ms']:.0f} ms", end=", ")
    print(f"dropping a worker {result['drop_ms']:.1f} ms")


HALVES = {"dynamo": half_dynamo, "ours": half_ours, "bytes": half_bytes, "big": half_big}

if __name__ == "__main__":
    main()
