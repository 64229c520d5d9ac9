"""What `hpcserve status` prints, as rich renderables."""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpcserve.cli.describe import num_ready, worker_state
from hpcserve.types import LoadReport, Status, WorkerInfo


def status_page(status: Status) -> RenderableType:
    """Return one deployment: what it is, its warnings, and its workers with their load."""
    facts = Table.grid(padding=(0, 2))
    for label, value in _facts(status):
        facts.add_row(Text(label, style="bold"), Text(value))
    warnings = [Text(f"warning: {warning}", style="yellow") for warning in status.warnings]
    return Group(facts, *warnings, *([_workers(status)] if status.workers else []))


def status_list(statuses: list[Status]) -> RenderableType:
    """Return several deployments, one a row."""
    table = _table("name", "phase", "model", "mode", "workers", "endpoint")
    for status in statuses:
        ready = f"{num_ready(status)}/{sum(status.wanted.values())}"
        cells = (
            status.name,
            status.phase,
            status.model,
            status.mode,
            ready,
            status.endpoint or status.unix_socket or "",
        )
        table.add_row(*map(Text, cells))
    return table


def _facts(status: Status) -> list[tuple[str, str]]:
    pools = " + ".join(f"{num} {pool}" for pool, num in status.wanted.items())
    head = f"pid {status.head_pid} on {status.head_host}" if status.head_pid else "not running"
    up = f"{_duration(time.time() - status.started_at)}" if status.started_at else ""
    rows = [
        ("name", status.name),
        ("phase", f"{status.phase}{f': {status.detail}' if status.detail else ''}"),
        ("model", status.model),
        ("workers", f"{status.mode}, {pools} on {status.cluster}, {status.policy} router"),
        ("waiting", f"{status.num_waiting} for a worker" if status.num_waiting else ""),
        ("endpoint", status.endpoint or ""),
        ("socket", status.unix_socket or ""),
        ("frontends", _pids(status.frontend_pids) if len(status.frontend_pids) > 1 else ""),
        ("dashboard", status.dashboard or ""),
        ("plan", status.plan),
        ("ended", ", ".join(f"{num} {cause.replace('_', ' ')}" for cause, num in status.ends.items())),
        ("excluded", ", ".join(status.excluded_nodes)),
        ("head", head),
        ("up for", up),
    ]
    return [(label, value) for label, value in rows if value]


def _pids(pids: tuple[int, ...]) -> str:
    return f"{len(pids)} processes: pids {', '.join(map(str, pids))}"


def _workers(status: Status) -> Table:
    table = _table("worker", "pool", "job", "state", "host", "running", "waiting", "KV", "hits", "time left")
    for worker in status.workers:
        pool = worker.pool if worker.role == worker.pool else f"{worker.pool} as {worker.role}"
        cells = (worker.worker, pool, worker.job_id or "", worker_state(worker), worker.host or "")
        table.add_row(*map(Text, (*cells, *_load(status.load.get(worker.worker)), _time_left(worker))))
    return table


def _load(load: LoadReport | None) -> tuple[str, str, str, str]:
    if load is None:
        return "", "", "", ""
    reused = load.cached_tokens_total + load.pulled_tokens_total
    hits = f"{reused / load.prompt_tokens_total:.0%}" if load.prompt_tokens_total else ""
    return str(load.num_running), str(load.num_waiting), f"{load.kv_usage:.0%}", hits


def _time_left(worker: WorkerInfo) -> str:
    return _duration(worker.ends_at - time.time()) if worker.ends_at else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
