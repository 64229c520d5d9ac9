"""Batches beside the load: of `hpcserve batch run`, and uploaded. In the end each custom id has exactly one answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.asking import session_for
from tests.chaos.cases import Case, differences
from tests.chaos.world import World

_POLL_S = 1.0
_AGAIN_S = 1.0  # after a command or a request that failed: the disk may be full, the frontend dead


@dataclass
class BatchOutcome:
    """What became of one batch."""

    kind: str
    num_lines: int
    num_starts: int = 0  # of the command, or attempts to hand it in
    took_s: float = 0.0
    complaints: list[str] = field(default_factory=list)


def lines_of(cases: list[Case], count: int) -> list[tuple[str, Case]]:
    """Return that many requests with ids of their own, of the forms that batches may have."""
    fit = [case for case in cases if "messages" in case.body and case.expected is not None]
    return [(f"line-{number}", fit[number % len(fit)]) for number in range(count)]


def write_input(path: Path, lines: list[tuple[str, Case]]) -> None:
    """Write the file that both kinds of batch take."""
    with path.open("w") as file:
        for custom_id, case in lines:
            body = {key: value for key, value in case.body.items() if key not in ("stream", "stream_options")}
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


async def run_command(
    world: World, source: Path, output: Path, lines: list[tuple[str, Case]], is_over: Callable[[], bool], over: str
) -> BatchOutcome:
    """Give `hpcserve batch run` again until it says that all is done; `is_over` says when there is no more time."""
    outcome, began, said = BatchOutcome(f"run over {over}", len(lines)), time.monotonic(), ""
    while not is_over():
        outcome.num_starts += 1
        code, _, said = await world.hpcserve(
            "batch", "run", str(source), "-o", str(output), "--over", over, timeout_s=600
        )
        if code == 0:
            break
        await asyncio.sleep(_AGAIN_S)
    else:
        outcome.complaints.append(f"was not done after {outcome.num_starts} starts; last: {said.strip()[-500:]}")
    outcome.took_s = time.monotonic() - began
    with suppress(FileNotFoundError):
        outcome.complaints += _compare(output.read_text().splitlines(), lines)
    return outcome


async def hand_in(
    world: World, endpoint: str, source: Path, lines: list[tuple[str, Case]], is_over: Callable[[], bool]
) -> BatchOutcome:
    """Upload it, wait for its end, and fetch the answers."""
    outcome, began = BatchOutcome("uploaded", len(lines)), time.monotonic()
    async with session_for(endpoint, world.state.read_key()) as session:
        said: Any = "nothing"
        batch: dict[str, Any] | None = None
        while not is_over():
            try:
                if batch is None:
                    outcome.num_starts += 1
                    batch = await _upload(session, source)
                said = await _json(session.get(f"batches/{batch['id']}"))
                if said["status"] in ("completed", "failed", "expired", "cancelled"):
                    text = await _text(session.get(f"files/{said['output_file_id']}/content"))
                    outcome.complaints += _compare(text.splitlines(), lines)
                    break
            except (aiohttp.ClientError, OSError, _NotNow, KeyError) as err:
                said = repr(err)
            await asyncio.sleep(_POLL_S)
        else:
            outcome.complaints.append(f"was not done; last: {str(said)[:500]}")
    outcome.took_s = time.monotonic() - began
    return outcome


class _NotNow(Exception):
    """Another status than 200; a batch is asked for again later."""


async def _upload(session: aiohttp.ClientSession, source: Path) -> dict[str, Any]:
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", source.read_bytes(), filename="in.jsonl")
    file = await _json(session.post("files", data=form))
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return await _json(session.post("batches", json=body))


async def _json(asking: Any) -> dict[str, Any]:
    return dict(json.loads(await _text(asking)))


async def _text(asking: Any) -> str:
    async with asyncio.timeout(60), asking as response:
        text = await response.text()
        if response.status != 200:
            raise _NotNow(f"{response.status}: {text[:200]}")
        return str(text)


def _compare(answers: list[str], lines: list[tuple[str, Case]]) -> list[str]:
    cases, complaints = dict(lines), []
    seen: Counter[str] = Counter()
    for number, line in enumerate(answers):
        try:
            answer = json.loads(line)
        except ValueError:
            complaints.append(f"line {number} is torn: {line[:80]!r}")
            continue
        custom_id, response = answer["custom_id"], answer.get("response") or {}
        seen[custom_id] += 1
        if response.get("status_code") != 200:
            complaints.append(f"{custom_id}: {str(answer)[:300]}")
            continue
        choices = response["body"]["choices"]
        texts = [choice["message"]["content"] for choice in choices]
        reasons = [choice["finish_reason"] for choice in choices]
        if wrong := differences(cases[custom_id], texts, reasons, response["body"]["usage"]):
            complaints.append(f"{custom_id} ({cases[custom_id].name}): {wrong}")
    complaints += [f"{custom_id} has {count} answers" for custom_id, count in seen.items() if count > 1]
    if missing := cases.keys() - seen.keys():
        complaints.append(f"{len(missing)} of {len(cases)} have no answer, {min(missing)} for one")
    return complaints[:20]
