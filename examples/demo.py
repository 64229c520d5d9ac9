"""Prefill and decode engines on this machine behind one endpoint: a chat streamed twice, numbers, all of it down again.

Real vLLM engines on the CPU, the KV cache carried between them by NIXL, and a small model with random weights, made
here: what it says is noise, how it is served is not. `make demo` runs this; so does `python examples/demo.py`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

HPCSERVE = Path(sys.executable).with_name("hpcserve")
PROMPT = "Read these notes on schedulers, then summarise them. " + "A fair queue keeps its promises to everyone. " * 60
MAX_TOKENS = 128


@dataclass
class Reply:
    """One streamed chat, as its client saw it."""

    ttft_s: float
    duration_s: float
    num_tokens: int
    prompt_tokens: int
    cached_tokens: int
    text: str


def main() -> None:
    """Bring the deployment up, chat, and take it down whatever happens."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hpcserve-demo-") as directory:
        model = Path(directory) / "tiny"
        run("tiny-model", str(model))
        deployment = json.loads(
            run("up", "--name", "demo", "--cluster", "local", "--prefill", "1", "--decode", "1", "--model", str(model),
                "--port", "0", "--detach", "--json")
        )  # fmt: skip
        try:
            print(f"\nendpoint {deployment['endpoint']} after {time.monotonic() - started:.0f} s")
            for worker in deployment["workers"]:
                print(f"  {worker['id']:<18} {worker['role']:<8} {worker['state']}")
            asyncio.run(chat_twice(deployment["endpoint"]))
        finally:
            run("down", "--name", "demo")
    print(f"down; {time.monotonic() - started:.0f} s in all")


def run(*arguments: str) -> str:
    """Run an hpcserve command and return its standard output; its progress goes to the screen."""
    print("$ hpcserve", *arguments)
    return subprocess.run([HPCSERVE, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


async def chat_twice(endpoint: str) -> None:
    """Send the same long prompt twice: the second time it is in the decode engine's prefix cache."""
    async with aiohttp.ClientSession() as session:
        for attempt in ("cold", "warm"):
            reply = await chat(session, endpoint)
            rate = (reply.num_tokens - 1) / (reply.duration_s - reply.ttft_s)
            print(
                f"\n{attempt}: TTFT {reply.ttft_s * 1e3:.0f} ms, {rate:.0f} tokens/s, prompt of {reply.prompt_tokens} "
                f"tokens, {reply.cached_tokens} of them prefix hits\n  {reply.text[:100]!r} ..."
            )
        async with session.get(endpoint.removesuffix("/v1") + "/metrics") as response:
            wanted = ("hpcserve_worker_kv_pulled_tokens_total", "hpcserve_worker_prefix_cache_hits_total")
            lines = [line for line in (await response.text()).splitlines() if line.startswith(wanted)]
        print("\nper worker: tokens found in its cache, and tokens whose KV came over NIXL:", *lines, sep="\n  ")


async def chat(session: aiohttp.ClientSession, endpoint: str) -> Reply:
    """Stream one chat and measure it."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.monotonic()
    ttft_s, pieces, usage = None, [], {}
    async with session.post(f"{endpoint}/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                if choice["delta"].get("content"):
                    ttft_s = ttft_s or time.monotonic() - started
                    pieces.append(choice["delta"]["content"])
    if ttft_s is None:
        raise RuntimeError("the reply held no text")
    return Reply(
        ttft_s=ttft_s,
        duration_s=time.monotonic() - started,
        num_tokens=usage["completion_tokens"],
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        text="".join(pieces),
    )


if __name__ == "__main__":
    main()
