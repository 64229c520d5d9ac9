"""What a worker is, does and measures."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from hpcserve.types.ids import WorkerId


class Role(StrEnum):
    """What the router may ask of a worker. A label, not a build: every engine can do both."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"

    @property
    def prefills(self) -> bool:
        """Whether prompts may be computed here on behalf of another worker, or for itself."""
        return self is not Role.DECODE

    @property
    def decodes(self) -> bool:
        """Whether requests may be decoded here."""
        return self is not Role.PREFILL


class WorkerState(StrEnum):
    """Life of a worker. READY means that it has answered a real one-token generation."""

    PENDING = "pending"  # submitted; Slurm has not started it
    STARTING = "starting"  # the agent's process runs
    LOADING = "loading"  # the engine loads weights
    WARMING = "warming"  # the engine answers its first generation
    READY = "ready"
    DRAINING = "draining"  # finishes what it has, takes nothing new
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will come from this worker."""
        return self in (WorkerState.STOPPED, WorkerState.FAILED)


class EndCause(StrEnum):
    """Why a worker ended, as far as Slurm and the agent tell. What is done about it differs (`head/reconciler.py`)."""

    TOLD = "told"  # by us: taken down, renewed, or not wanted any more
    WALLTIME = "walltime"  # its job's time was over
    PREEMPTED = "preempted"  # by a job of higher priority; also where Slurm requeued it
    CANCELLED = "cancelled"  # by scancel, not ours
    NODE_FAILURE = "node_failure"  # Slurm gave up the node, or its prolog failed
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"  # the agent said why, or its process ended with an exit code
    KILLED = "killed"  # by a signal that nobody owned up to
    SILENT = "silent"  # nothing heard though its job runs: frozen, or cut off
    UNKNOWN = "unknown"


class WorkDone(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine has computed since it started, and the time that took: what its speed is learned from.

    A step that does both is a pass and a decode step; its time is split between the two.
    """

    prefill_passes: int = 0  # steps that computed prompt tokens
    prefill_tokens: int = 0  # computed in them
    prefill_squares: int = 0  # of each pass's tokens, added up: attention's share of the time grows with them
    prefill_s: float = 0.0
    decode_steps: int = 0
    decode_kv_read: float = 0.0  # of each step the context that it read, as a share of the KV cache; added up
    decode_kv_squares: float = 0.0  # of those shares, added up
    decode_s: float = 0.0


class LoadReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine measured about itself. Counters only grow over an engine's life."""

    num_running: int = 0
    num_waiting: int = 0
    waiting_tokens: int = 0  # prompt tokens not computed yet
    kv_usage: float = 0.0  # share of KV blocks in use, 0 to 1
    prefill_tokens_per_s: float | None = None  # measured while prefilling; None until known
    decode_tokens_per_s: float | None = None  # all sequences together, measured while decoding
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    cached_tokens_total: int = 0  # prompt tokens found in the local prefix cache
    pulled_tokens_total: int = 0  # prompt tokens whose KV came from another worker
    pull_failures_total: int = 0  # pulls that failed and were recomputed
    pull_tokens_per_s: float | None = None  # of one pull, measured besides its latency; None until known
    pull_latency_ms: float | None = None  # what a pull takes besides moving its tokens; None until known
    work: WorkDone = WorkDone()


Ability = Literal["generate", "embed", "structured_output", "tools", "reasoning"]
"""What an engine may be asked for. Everything in `Sampling` but `structured` belongs to "generate"."""


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is, once started."""

    engine: str  # "vllm", "mock"
    model: str  # served name
    block_size: int  # tokens in a KV block
    num_kv_blocks: int
    max_model_len: int  # tokens, prompt and output together
    max_batched_tokens: int | None = None  # in a step; None: it does not say
    max_num_seqs: int | None = None  # in a step; None: it does not say
    kv_transport: str | None = None  # None: cannot hand over or pull KV
    can: tuple[Ability, ...] = ("generate",)
    has_kv_events: bool = True  # whether it tells what its prefix cache holds
    warnings: tuple[str, ...] = ()  # fallbacks taken while starting; shown in status


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as the head and the frontends know it."""

    worker: WorkerId
    pool: str  # component: "prefill", "decode" or "both"
    role: Role
    state: WorkerState
    address: str | None = None  # of the data plane; known from STARTING on
    host: str | None = None
    pid: int | None = None
    job_id: str | None = None
    ends_at: float | None = None  # Unix time at which Slurm ends the job
    engine: EngineInfo | None = None  # from WARMING on
    detail: str = ""  # pending reason, or why it failed
    leaves_at: float | None = None  # Unix time by which a DRAINING worker has handed over what it still runs
    cause: EndCause | None = None  # of its end, once it is over
    is_silent: bool = False  # READY, and has said nothing for seconds: nothing is sent to it until it is heard again
