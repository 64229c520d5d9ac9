"""What hpcserve processes say to each other: all conversations, on one page.

agent and head      Dask's worker stream: `ANNOUNCE` up, `COMMAND` down.
frontend and head   a channel: "register", "held", "assign", "prefilled", "release", "finished", "report" up; "status",
                    "retire" down. Where there are several, "begin", "end", "tokens" (limits of keys), "samples" and
                    "others" (metrics) up, too.
frontend and agent  a channel: "generate", "abort", "taken" (the KV of a request that left) up; "outputs" down. A
                    leaving agent talks to another one as a frontend does.
CLI and head        the same channel as a frontend's: "subscribe", "plan" and "stop" up; "status" down.
batch and agent     Dask tasks (`agent/unit_tasks.py`), which the head places by their annotation: `UnitDemand`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from hpcserve.types import Assignment, BlockHash, KvEventBatch, LoadReport, Role, WorkerId, WorkerInfo

ANNOUNCE = "hpcserve_announce"
COMMAND = "hpcserve_command"
PEERS = "hpcserve_peers"
"""Asks the head which workers there are; answered with an encoded tuple of `WorkerInfo`."""
UNIT = "hpcserve"  # annotation of Dask tasks


class Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the head tells an agent: send a snapshot of the cache's events; drain and end; take another role."""

    op: Literal["snapshot", "stop", "role"]
    leave_at: float | None = None  # with "stop": Unix time by which all is handed over; None: the agent's own bound
    role: Role | None = None  # with "role"


class Announcement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an agent tells the head: any of its membership, its load, its cache."""

    worker: WorkerId
    info: WorkerInfo | None = None
    load: LoadReport | None = None
    kv: KvEventBatch | None = None


class FrontendInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a frontend tells the head when it connects."""

    pid: int
    endpoint: str | None  # base URL, ends in /v1; None: no TCP
    unix_socket: str | None = None  # path
    index: int = 0  # of the processes that `frontend.processes` wants
    host: str = ""  # that it runs on


class Held(msgspec.Struct, kw_only=True):
    """What a frontend tells a new head of a request that runs where an earlier head assigned it."""

    assignment: Assignment
    num_tokens: int  # of its prompt
    is_prefilled: bool = False


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    """End the deployment. `force`: without waiting for running requests."""

    force: bool = False


class UnitDemand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the head is told, as the annotation `UNIT` of a Dask task, of a unit of offline requests. No prompts."""

    stage: Literal["whole", "prefill", "decode"]
    num_requests: int
    num_tokens: int  # of all prompts together
    num_output_tokens: int  # likely to be generated, all together
    num_shared_tokens: int = 0  # leading ones that all prompts have in common
    block_hashes: list[BlockHash] = []  # of the full blocks of the shared tokens


class Exhibit(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to "preflight": memory of an agent that may be pulled for as long as the connection lasts."""

    description: bytes  # see `KVTransport.describe`
    path: str  # how the bytes travel
    size: int  # bytes, of region 0
    checksum: int  # CRC-32 of them
