"""An endpoint that outlives its jobs: on a real Slurm workers end in every way that there is, under load, at once.

One deployment for all of it, since walltimes are minutes: one worker is left to its walltime, the others are cancelled,
killed, frozen and preempted. Clients must not notice, and the status must tell these apart.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fixtures_devcluster import DevCluster
from tests.system.chats import Chat, metric, session_for, stream_chat
from tests.system.conftest import Deployment

pytestmark = [pytest.mark.real, pytest.mark.slurm, pytest.mark.timeout(240)]

NUM_TOKENS = 600  # 17 s at a fifth of the speed
PROMPTS = [f"request {'e' * number}: tell me about the end." for number in range(1, 9)]
SLOW = "engine.mock.speedup=0.2"


@dataclass
class Load:
    """Clients that stream one reply after another, each compared with the undisturbed one."""

    texts: list[str]
    is_over: bool = False
    num_done: int = 0
    trouble: list[str] = field(default_factory=list)
    longest_pause_s: float = 0.0

    async def client(self, session: aiohttp.ClientSession, number: int) -> None:
        while not self.is_over:
            chat = Chat()
            watching = asyncio.create_task(self._watch(chat))
            try:
                await stream_chat(session, PROMPTS[number], max_tokens=NUM_TOKENS, model="mock", chat=chat)
            except aiohttp.ClientError as err:
                chat.error = repr(err)
            finally:
                watching.cancel()
            if chat.error or chat.finish_reason != "length":
                self.trouble.append(chat.error or f"ended with {chat.finish_reason}")
            elif chat.text != self.texts[number]:
                self.trouble.append(f"another text for prompt {number}")
            self.num_done += 1

    async def _watch(self, chat: Chat) -> None:
        """Measure how long no chunk comes, to a tenth of a second."""
        seen, at = 0, time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            if chat.num_chunks != seen:
                seen, at = chat.num_chunks, time.monotonic()
            self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - at)


async def test_workers_end_in_every_way_and_no_request_fails_and_no_text_changes(
    slurm: DevCluster, env: dict[str, str], deploy: Callable[..., Deployment]
) -> None:
    quick = deploy("--cluster", "local", "--engine", "mock", "--set", "engine.mock.speedup=.inf", name="quick")
    texts = [await whole_text(quick, prompt) for prompt in PROMPTS]
    quick.hpcserve("down")
    env["SLURM_CONF"] = str(slurm.conf)
    options = ("--cluster", "slurm", "--nodes", "5", "--walltime", "00:02:00", "--engine", "mock")
    deployment = deploy(*options, "--set", SLOW, "--set", "cluster.drain_timeout_s=2")
    load = Load(texts)
    async with session_for(deployment.endpoint, deployment.key) as session:
        clients = [asyncio.create_task(load.client(session, number)) for number in range(len(PROMPTS))]
        cancelled, killed, frozen, preempted, renewed = deployment.up["workers"]
        urgent = slurm.slurm(
            "sbatch", "--parsable", "--partition=urgent", "--exclusive", f"--nodelist={preempted['host']}",
            "--output=/dev/null", "--wrap=sleep 1",
        ).strip()  # fmt: skip
        try:
            slurm.slurm("scancel", cancelled["job_id"])
            send(killed, signal.SIGKILL, deployment)
            send(frozen, signal.SIGSTOP, deployment)
            victims = (cancelled, killed, frozen, preempted, renewed)
            causes = ("cancelled", "killed", "silent", "preempted", "told")
            expected = dict(zip((worker["id"] for worker in victims), causes, strict=True))
            status = await until(deployment, lambda said: causes_of(said).items() >= expected.items(), 120)
            assert {cause: status["ends"][cause] for cause in causes[:-1]} == dict.fromkeys(causes[:-1], 1)
            await until(deployment, lambda said: num_ready(said) == 5, 60)
        finally:
            slurm.slurm("scancel", urgent)
        load.is_over = True
        await asyncio.gather(*clients)
        assert await metric(session, "hpcserve_worker_ends_total") >= 5
    assert not load.trouble
    assert load.num_done > len(PROMPTS)
    assert load.longest_pause_s < 15, "requests move within seconds"
    assert "takes over from" in deployment.log("head")
    lives = [json.loads(line) for line in (deployment.state_dir / "workers.jsonl").read_text().splitlines()]
    assert {life["worker"]: life["cause"] for life in lives}.items() >= expected.items()
    shown = deployment.hpcserve("status").stdout
    assert "1 cancelled" in shown
    assert "1 silent" in shown


async def whole_text(deployment: Deployment, prompt: str) -> str:
    async with session_for(deployment.endpoint, deployment.key) as session:
        chat = await stream_chat(session, prompt, max_tokens=NUM_TOKENS, model="mock")
    assert not chat.error
    return chat.text


async def until(deployment: Deployment, holds: Callable[[dict[str, Any]], bool], timeout_s: float) -> dict[str, Any]:
    """Return the first status of which that holds."""
    deadline = time.monotonic() + timeout_s
    while True:
        status = await asyncio.to_thread(deployment.status)
        if holds(status):
            return status
        assert time.monotonic() < deadline, {key: status[key] for key in ("ends", "workers")}
        await asyncio.sleep(0.5)


def causes_of(status: dict[str, Any]) -> dict[str, str]:
    """Return why workers ended, by id; without those that still run."""
    return {worker["id"]: worker["cause"] for worker in status["workers"] if worker["cause"]}


def num_ready(status: dict[str, Any]) -> int:
    return sum(worker["state"] == "ready" for worker in status["workers"])


def send(worker: dict[str, Any], number: signal.Signals, deployment: Deployment) -> None:
    """Send an agent a signal, after a look that the pid is one."""
    assert str(deployment.state_dir) in Path(f"/proc/{worker['pid']}/cmdline").read_text()
    os.kill(worker["pid"], number)
