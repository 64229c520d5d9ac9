"""A real vLLM engine on the CPU behind hpcserve, and behind vLLM's own server: tokens/s, TTFT, serving CPU a token.

    python -m tests.benchmarks.frontend_against_api_server [--connections 16] [--tokens 64] [--seconds 15] [--rounds 3]

Same tiny model, same engine arguments, same clients, one after the other, and again. The engine core has a process of
its own in both, as on GPUs. *Serving* is all the rest: for vLLM's server its process, for hpcserve the frontend, the
agent (which reads the engine's outputs and makes text of them, as vLLM's server does), and the head. hpcserve does what
it always does: keys, KV router, KV events, metrics, a log line a request.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks import process_cpu, serving_systems
from tests.benchmarks.serving_systems import MODEL, System

_ENV = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
_CONTEXT = 2048
_WARM_UP_S = 3.0
_PROMPT = "def read(self, size): return the next lines of the file " * 4


@dataclass
class Seen:
    """What the clients saw."""

    tokens: int = 0
    ttfts_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One run."""

    tokens_per_s: float
    ttft_ms: float  # median
    serving_us: float  # CPU a token
    engine_us: float
    parts: dict[str, float]  # of serving


@contextmanager
def api_server(directory: Path, model: Path, port: int = 8400) -> Iterator[System]:
    """vLLM's server."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", port]
    command += ["--host", "127.0.0.1", "--served-model-name", MODEL, "--dtype", "float32", "--block-size", "32"]
    command += ["--max-model-len", _CONTEXT, "--enforce-eager", "--scheduling-policy", "priority"]
    command += ["--disable-uvicorn-access-log"]
    with serving_systems.process(command, os.environ | _ENV, directory / "api_server.log") as server:
        serving_systems.wait_for_answer(System("vLLM's server", port, None, [server.pid]), server)
        engines = [pid for pid in process_cpu.descendants(server.pid) if pid != server.pid]
        yield System("vLLM's server", port, None, [server.pid], engines)


@contextmanager
def hpcserve(directory: Path, model: Path) -> Iterator[System]:
    """A local deployment with one engine."""
    settings = (f"model.max_model_len={_CONTEXT}", "engine.vllm.in_process=false", "cluster.local.threads=1")
    os.environ.update(_ENV)
    with serving_systems.hpcserve(directory, model, engine="vllm", num_workers=1, settings=settings) as system:
        agent = system.engines[0]
        engines = [pid for pid in process_cpu.descendants(agent) if pid != agent]
        yield System(system.name, system.port, system.key, system.frontend, engines, [agent, *system.others])


async def load(system: System, options: argparse.Namespace) -> Result:
    """Have clients ask again and again, and look at the middle of it."""
    seen = Seen()
    clients = [asyncio.create_task(_ask(system, options.tokens, number, seen)) for number in range(options.connections)]
    await asyncio.sleep(_WARM_UP_S)
    seen.tokens, seen.ttfts_s = 0, []
    parts = {"frontend": system.frontend, "agent": system.others[:1], "head": system.others[1:]}
    before = {name: process_cpu.cpu_s(pids) for name, pids in parts.items()}
    engine, began = process_cpu.cpu_s(system.engines), time.perf_counter()
    await asyncio.sleep(options.seconds)
    took_s, tokens, ttfts_s = time.perf_counter() - began, seen.tokens, list(seen.ttfts_s)
    spent = {name: 1e6 * (process_cpu.cpu_s(pids) - before[name]) / tokens for name, pids in parts.items()}
    engine_us = 1e6 * (process_cpu.cpu_s(system.engines) - engine) / tokens
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return Result(tokens / took_s, 1e3 * statistics.median(ttfts_s), sum(spent.values()), engine_us, spent)


async def _ask(system: System, max_tokens: int, number: int, seen: Seen) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
    writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    count = 0
    while True:
        count += 1
        writer.write(_request(system.key, f"{time.time_ns()} {number} {count} {_PROMPT}", max_tokens))
        sent_at, is_first = time.perf_counter(), True
        while True:
            data = await reader.read(1 << 16)
            if not data:
                raise RuntimeError(f"{system.name} hung up")
            num_tokens = len(_WITH_TEXT.findall(data))
            if num_tokens and is_first:
                seen.ttfts_s.append(time.perf_counter() - sent_at)
                is_first = False
            seen.tokens += num_tokens
            if data.endswith(b"0\r\n\r\n"):
                break


_WITH_TEXT = re.compile(rb'"delta":\{"content":(?!"","|""\},"logprobs":null,"finish_reason":null\}\])')


def _request(key: str | None, text: str, max_tokens: int) -> bytes:
    messages = [{"role": "user", "content": text}]
    body = {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    data = json.dumps(body | {"temperature": 0}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of one reply")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("skipped, no vLLM: pip install 'hpcserve[cpu]'")
        return
    from hpcserve.engine.tiny_model import make_tiny_model

    with tempfile.TemporaryDirectory(prefix="hs-") as name:
        directory = Path(name)
        make_tiny_model(directory / "model")
        results: dict[str, list[Result]] = {}
        for start in (api_server, hpcserve):
            with start(directory, directory / "model") as system:
                for _ in range(options.rounds):
                    result = asyncio.run(load(system, options))
                    results.setdefault(system.name, []).append(result)
                    parts = ", ".join(f"{part} {us:.0f}" for part, us in result.parts.items())
                    print(
                        f"{system.name}: {result.tokens_per_s:,.0f} tokens/s, TTFT {result.ttft_ms:.1f} ms, serving "
                        f"{result.serving_us:.0f} us a token ({parts}), engine {result.engine_us:.0f} us",
                        flush=True,
                    )
    show(results["hpcserve"], results["vLLM's server"])


def show(ours: list[Result], theirs: list[Result]) -> None:
    """Print medians over the rounds, as ratios."""
    for name in ("tokens_per_s", "ttft_ms", "serving_us"):
        values = [statistics.median(getattr(each, name) for each in results) for results in (ours, theirs)]
        print(f"{name}: {values[0]:,.1f} against {values[1]:,.1f}, ratio {values[0] / values[1]:.2f}")


if __name__ == "__main__":
    main()
