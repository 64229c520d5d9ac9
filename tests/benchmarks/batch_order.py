"""What order is worth: questions about shared documents, shuffled, on two engines.

    python -m tests.benchmarks.batch_order --documents 64 --questions 50 --rounds 2

As they come, over HTTP and placed by `least_loaded`, and as `batch run` does it. The KV cache of each engine holds
`--cached` documents, as the cache of a real engine holds a share of a real set only. Rounds alternate; medians. With
`--engine mock` the engines only take the time that large ones would.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.batch_standalone import HPCSERVE, run_batch, write_completions

_KV_BYTES_A_TOKEN = 4 * 2 * 256 * 4  # layers, keys and values, dimensions, float32: of the tiny model
_NUM_SEQS = 16
_BLOCK_TOKENS = 32
_WAYS = {
    "as they come, least_loaded": ("--order", "input", "--over", "http", "--set", "router.policy=least_loaded"),
    "as they come, kv": ("--order", "input"),
    "ordered": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--document-tokens", type=int, default=1000)
    parser.add_argument("--output-tokens", type=int, default=16)
    parser.add_argument("--cached", type=int, default=24, help="documents that one engine's cache holds")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--engine", choices=("vllm", "mock"), default="vllm")
    args = parser.parse_args()
    num_tokens = args.cached * args.document_tokens
    vllm = {"max_num_seqs": _NUM_SEQS, "kv_cache_memory_bytes": num_tokens * _KV_BYTES_A_TOKEN}
    mock = {"max_num_seqs": _NUM_SEQS, "num_kv_blocks": num_tokens // _BLOCK_TOKENS} if args.engine == "mock" else None
    with tempfile.TemporaryDirectory(prefix="hb-") as root:
        directory = Path(root)
        subprocess.run([HPCSERVE, "tiny-model", directory / "tiny"], check=True, capture_output=True)
        given = directory / "in.jsonl"
        write_completions(given, _prompts(args.documents, args.questions, args.document_tokens), args.output_tokens)
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in _WAYS}
        for _ in range(args.rounds):
            for way, options in _WAYS.items():
                told = run_batch(
                    directory, given, directory / "tiny", num_workers=2, vllm=vllm, mock=mock, options=options
                )
                found[way].append(told)
                print(f"{way}: {told['seconds']:.1f} s, {_hits(told):.1%} of the prompts' tokens cached", flush=True)
    _report(found)


def _prompts(num_documents: int, num_questions: int, num_tokens: int) -> Iterator[list[int]]:
    """Yield every question behind its document, in one random order. Token ids from 10 on are words like others."""
    chance = random.Random(7)
    documents = [chance.choices(range(10, 2000), k=num_tokens) for _ in range(num_documents)]
    pairs = [(document, question) for document in range(num_documents) for question in range(num_questions)]
    chance.shuffle(pairs)
    for document, _ in pairs:
        yield documents[document] + chance.choices(range(10, 2000), k=24)


def _hits(told: dict[str, Any]) -> float:
    return float(told["cached_tokens"] / told["prompt_tokens"])


def _report(found: dict[str, list[dict[str, Any]]]) -> None:
    rates = {way: median(each["output_tokens_per_s"] for each in runs) for way, runs in found.items()}
    first = next(iter(rates.values()))
    print(f"{'':28} {'tokens/s':>10} {'ratio':>7} {'hits':>7}")
    for way, runs in found.items():
        print(f"{way:28} {rates[way]:>10,.0f} {rates[way] / first:>7.2f} {median(map(_hits, runs)):>7.1%}")


if __name__ == "__main__":
    main()
