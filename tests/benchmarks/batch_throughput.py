"""One engine under `hpcserve batch run` beside `vllm.LLM.generate`: the same distinct prompts, in the input's order.

    python -m tests.benchmarks.batch_throughput --prompts 1000 --rounds 3

Tokens generated a second, from the first request to the last answer on disk; loading the model counts for neither, and
both are warm. vLLM is told the same of both: cache, sequences at once, no threads besides. Rounds alternate; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.batch_standalone import HPCSERVE, run_batch, write_completions

_VLLM = {"max_num_seqs": 128, "kv_cache_memory_bytes": 1 << 30}
_GENERATE = """
import json, sys, time
from vllm import LLM, SamplingParams
model, prompts, told = sys.argv[1], json.load(open(sys.argv[2])), json.loads(sys.argv[3])
engine = LLM(model, enforce_eager=True, max_model_len=2048, dtype="float32", block_size=32, seed=0, **told["vllm"])
sampling = SamplingParams(temperature=0, max_tokens=told["max_tokens"], ignore_eos=True)
engine.generate([{"prompt_token_ids": [5] * 8}], sampling, use_tqdm=False)
started = time.monotonic()
outputs = engine.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False)
seconds = time.monotonic() - started
num = sum(len(each.outputs[0].token_ids) for each in outputs)
print("RESULT", json.dumps({"seconds": seconds, "output_tokens_per_s": num / seconds}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    chance = random.Random(11)
    prompts = [chance.choices(range(10, 2000), k=args.prompt_tokens) for _ in range(args.prompts)]
    with tempfile.TemporaryDirectory(prefix="hb-") as root:
        directory = Path(root)
        model, given = directory / "tiny", directory / "in.jsonl"
        subprocess.run([HPCSERVE, "tiny-model", model], check=True, capture_output=True)
        write_completions(given, prompts, args.output_tokens)
        (directory / "prompts.json").write_text(json.dumps(prompts))
        theirs, ours = [], []
        for _ in range(args.rounds):
            theirs.append(_generate(directory, model, args.output_tokens)["output_tokens_per_s"])
            told = run_batch(directory, given, model, num_workers=1, vllm=_VLLM, options=("--order", "input"))
            ours.append(told["output_tokens_per_s"])
            print(f"LLM.generate {theirs[-1]:,.0f} tokens/s, batch run {ours[-1]:,.0f}", flush=True)
    print(f"ratio of medians: {median(ours) / median(theirs):.2f}")


def _generate(directory: Path, model: Path, max_tokens: int) -> dict[str, Any]:
    told = json.dumps({"vllm": _VLLM, "max_tokens": max_tokens})
    env = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _GENERATE, str(model), str(directory / "prompts.json"), told]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
    return found


if __name__ == "__main__":
    main()
