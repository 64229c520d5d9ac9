"""An endpoint that outlives its jobs: continuous load on workers whose walltime is minutes, for as long as asked.

    python -m tests.benchmarks.walltime_service --minutes 30 --walltime 00:04:00 [--nodes 3] [--streams 8]

Boots a development cluster (or takes the one that SLURM_CONF names), serves mock engines on it and keeps so many
streams running, each long enough to meet the ends of workers. Every text is compared with that of a deployment that
nothing happens to. Prints requests, failures, changed texts, renewals and the longest pause within a stream; exits with
1 if a request failed or a text changed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

HPCSERVE = str(Path(sys.executable).with_name("hpcserve"))
_DEVCLUSTER = Path(__file__).parents[2] / "slurm" / "devcluster"
_PROMPTS = [f"request {'o' * number}: " + "say what you know. " * number for number in range(1, 25)]
_SPEEDUP = 0.2  # 35 tokens/s a stream: little work for this machine, and streams that last


@dataclass
class Seen:
    """What the clients saw."""

    num_requests: int = 0
    num_tokens: int = 0
    failures: list[str] = field(default_factory=list)
    num_changed: int = 0
    longest_pause_s: float = 0.0
    longest_ttft_s: float = 0.0


def main() -> int:
    """Run and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--walltime", default="00:04:00")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=600, help="of a reply")
    parser.add_argument("--port", type=int, default=18401, help="first of nine, for the development cluster")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hs-") as name:
        env = os.environ | {"HPCSERVE_STATE_DIR": f"{name}/state"}
        with _deployment(env, "--cluster", "local", "--set", "engine.mock.speedup=.inf") as up:
            texts = asyncio.run(_texts(up, options.tokens))
        with slurm_for(env, Path(name) / "dc", options.port):
            slurm = (
                "--cluster", "slurm", "--nodes", str(options.nodes), "--walltime", options.walltime,
                "--set", f"engine.mock.speedup={_SPEEDUP}",
            )  # fmt: skip
            with _deployment(env, *slurm) as up:
                return asyncio.run(_measure(up, env, options, texts))


@contextmanager
def slurm_for(env: dict[str, str], directory: Path, port: int) -> Iterator[None]:
    """Have `env` name a development cluster: the one that it names already, or one that lives for as long as this."""
    if "SLURM_CONF" in env:
        yield
        return
    command = [sys.executable, str(_DEVCLUSTER)]
    done = subprocess.run([*command, "up", f"--dir={directory}", f"--port={port}"], capture_output=True, text=True)
    try:
        if done.returncode:
            sys.exit(done.stderr)
        env["SLURM_CONF"] = str(directory / "slurm.conf")
        yield
    finally:
        subprocess.run([*command, "down", f"--dir={directory}"], check=True, capture_output=True)


@contextmanager
def _deployment(env: dict[str, str], *options: str) -> Iterator[dict[str, Any]]:
    command = [HPCSERVE, "up", "--detach", "--json", "--port", "0", "--name", "w", "--engine", "mock", *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    try:
        yield json.loads(done.stdout)
    finally:
        subprocess.run([HPCSERVE, "down", "--name", "w"], env=env, check=False, capture_output=True)


def _session(up: dict[str, Any]) -> aiohttp.ClientSession:
    headers = {"Authorization": f"Bearer {Path(up['key_file']).read_text().strip()}"} if up["key_file"] else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=150)
    return aiohttp.ClientSession(f"{up['endpoint']}/", headers=headers, timeout=timeout)


async def _texts(up: dict[str, Any], num_tokens: int) -> list[str]:
    async with _session(up) as session:
        return [await _stream(session, prompt, num_tokens, Seen()) for prompt in _PROMPTS]


async def _measure(up: dict[str, Any], env: dict[str, str], options: argparse.Namespace, texts: list[str]) -> int:
    seen, ends_at = Seen(), time.monotonic() + options.minutes * 60
    async with _session(up) as session:
        clients = [
            asyncio.create_task(_client(session, number, options, texts, seen, ends_at))
            for number in range(options.streams)
        ]
        while time.monotonic() < ends_at:
            await asyncio.sleep(min(60.0, max(0.1, ends_at - time.monotonic())))
            await _report(env, seen)
        await asyncio.gather(*clients)
    await _report(env, seen)
    print(*seen.failures[:20], sep="\n")
    return int(bool(seen.failures or seen.num_changed))


async def _client(
    session: aiohttp.ClientSession,
    number: int,
    options: argparse.Namespace,
    texts: list[str],
    seen: Seen,
    ends_at: float,
) -> None:
    while time.monotonic() < ends_at:
        which = number % len(_PROMPTS)
        number += options.streams + 1
        seen.num_requests += 1
        try:
            text = await _stream(session, _PROMPTS[which], options.tokens, seen)
        except (aiohttp.ClientError, TimeoutError, RuntimeError) as err:
            seen.failures.append(f"{time.strftime('%H:%M:%S')} {err!r}")
            await asyncio.sleep(1.0)
        else:
            seen.num_changed += text != texts[which]


async def _stream(session: aiohttp.ClientSession, prompt: str, num_tokens: int, seen: Seen) -> str:
    """Return a reply's text. Raises `RuntimeError` for one that is not whole."""
    body = {
        "model": "mock", "messages": [{"role": "user", "content": prompt}], "max_tokens": num_tokens,
        "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    text, finish_reason, last_at = "", None, None
    began = time.monotonic()
    async with session.post("chat/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            choice, now = chunk["choices"][0], time.monotonic()
            if last_at is None:
                seen.longest_ttft_s = max(seen.longest_ttft_s, now - began)
            else:
                seen.longest_pause_s = max(seen.longest_pause_s, now - last_at)
            last_at = now
            text += choice["delta"].get("content") or ""
            finish_reason = choice["finish_reason"] or finish_reason
    if finish_reason != "length":
        raise RuntimeError(f"a stream ended with {finish_reason}")
    seen.num_tokens += num_tokens
    return text


async def _report(env: dict[str, str], seen: Seen) -> None:
    status = await asyncio.create_subprocess_exec(
        HPCSERVE, "status", "--json", "--name", "w", env=env, stdout=asyncio.subprocess.PIPE
    )
    said = json.loads((await status.communicate())[0])
    ready = sum(worker["state"] == "ready" for worker in said["workers"])
    ends = ", ".join(f"{number} {cause}" for cause, number in said["ends"].items()) or "none"
    print(
        f"{time.strftime('%H:%M:%S')} {seen.num_requests} requests, {seen.num_tokens} tokens, "
        f"{len(seen.failures)} failed, {seen.num_changed} changed, longest pause {seen.longest_pause_s:.2f} s, "
        f"first token within {seen.longest_ttft_s:.2f} s; {ready} READY, ended: {ends}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
