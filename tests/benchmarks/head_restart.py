"""From kill -9 of the head to serving again, under load: how long, and does anybody notice?

    python -m tests.benchmarks.head_restart [--nodes 8] [--streams 32] [--rounds 3] [--port 18501]

Boots a development cluster (or takes the one that SLURM_CONF names), serves mock engines on it, keeps so many streams
running and kills the head, `hpcserve up` following at once. Prints for each round the seconds until the endpoint serves
with all workers READY again, and until a request that came meanwhile was answered; and whether the jobs are the same.
Exits with 1 if a stream failed, or a job is another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.benchmarks.walltime_service import HPCSERVE, slurm_for
from tests.system.chats import Chat, session_for, stream_chat

_NAME = "r"
_TOKENS = 1000
_SPEEDUP = 0.2  # half a minute of streaming


def main() -> int:
    """Run and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=18501, help="first of nine, for the development cluster")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hs-") as name:
        env = os.environ | {"HPCSERVE_STATE_DIR": f"{name}/state"}
        with slurm_for(env, Path(name) / "dc", options.port):
            try:
                first = _up(env, "--cluster", "slurm", "--engine", "mock", "--nodes", str(options.nodes), "--port", "0",
                            "--set", f"engine.mock.speedup={_SPEEDUP}")  # fmt: skip
                return asyncio.run(_measure(first, env, options))
            finally:
                subprocess.run([HPCSERVE, "down", "--name", _NAME], env=env, check=False, capture_output=True)


def _up(env: dict[str, str], *options: str) -> dict[str, Any]:
    command = [HPCSERVE, "up", "--detach", "--json", "--name", _NAME, *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout))


async def _measure(first: dict[str, Any], env: dict[str, str], options: argparse.Namespace) -> int:
    key, state = Path(first["key_file"]).read_text().strip(), Path(first["state_dir"])
    jobs, worst = _jobs(state), 0
    serving: list[float] = []
    async with session_for(first["endpoint"], key) as session:
        for number in range(1, options.rounds + 1):
            chats = [Chat() for _ in range(options.streams)]
            running = [asyncio.create_task(_stream(session, index, chat)) for index, chat in enumerate(chats)]
            while not all(chat.num_chunks for chat in chats):
                await asyncio.sleep(0.05)
            os.kill(json.loads((state / "head.json").read_text())["proc"]["pid"], signal.SIGKILL)
            killed = time.monotonic()
            late = asyncio.create_task(_late(session))
            up = await asyncio.to_thread(_up, env)
            serving.append(time.monotonic() - killed)
            num_ready = sum(worker["state"] == "ready" for worker in up["workers"])
            late_s = await late - killed
            num_running = sum(not task.done() for task in running)
            await asyncio.gather(*running)
            failed = [chat for chat in chats if chat.error or chat.usage.get("completion_tokens") != _TOKENS]
            same = _jobs(state) == jobs
            worst |= bool(failed) or not same or num_ready != options.nodes
            print(
                f"round {number}: serving with {num_ready} of {options.nodes} workers READY after {serving[-1]:.1f} s, "
                f"a request of meanwhile answered after {late_s:.1f} s, {num_running} of {len(chats)} streams went on, "
                f"{len(failed)} failed, jobs {'the same' if same else 'not the same'}"
            )
    print(f"kill -9 to serving again: median {statistics.median(serving):.1f} s, worst {max(serving):.1f} s")
    return worst


def _jobs(state: Path) -> dict[str, str]:
    return {record["worker"]: record["job_id"] for record in json.loads((state / "jobs.json").read_text())}


async def _stream(session: aiohttp.ClientSession, index: int, chat: Chat) -> None:
    await stream_chat(session, f"stream {'i' * index}: " * 10, max_tokens=_TOKENS, model="mock", chat=chat)


async def _late(session: aiohttp.ClientSession) -> float:
    chat = await stream_chat(session, "who comes while there is no head?", max_tokens=1, model="mock")
    if chat.error:
        sys.exit(chat.error)
    return time.monotonic()


if __name__ == "__main__":
    sys.exit(main())
