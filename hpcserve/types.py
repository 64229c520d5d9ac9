"""The values that cross processes. Frozen msgspec structs; no behaviour beyond what can be read off a value."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, NewType

import msgspec

WorkerId = NewType("WorkerId", str)
"""Names one life of one node agent: `<pool>-<index>-<incarnation>`, e.g. `decode-3-a91f`. Never used twice."""
RequestId = NewType("RequestId", str)
BlockHash = NewType("BlockHash", int)
"""Unsigned 64 bits: the chained hash of all tokens up to the end of a KV block (see `kv.hashing`)."""

FinishReason = Literal["stop", "length", "abort", "error"]


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


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Sampling parameters of one sequence. Meanings and ranges are those of vLLM's `SamplingParams`."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None  # alternatives per token; 0: only the sampled token's
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False  # keep the stop string in the text
    ignore_eos: bool = False
    skip_special_tokens: bool = True


class KvHandle(msgspec.Struct, frozen=True, kw_only=True):
    """Where the KV blocks of a prompt can be fetched, once. Only the engines look inside `params`."""

    transport: str  # "nixl", "mpi", "mock"
    source: WorkerId
    num_tokens: int  # prompt tokens that the handle covers
    params: dict[str, Any]


class EngineRequest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One sequence for one engine. The engine returns what follows `token_ids`."""

    request_id: RequestId
    token_ids: list[int]
    sampling: Sampling
    prefill_only: bool = False  # compute the prompt and one token; the last output carries a KvHandle
    kv: KvHandle | None = None  # pull the prompt's KV from there instead of computing it
    priority: int = 0  # lower runs first
    cache_salt: str | None = None  # prefixes are shared within one salt only
    num_resumed: int = 0  # how many of the last `token_ids` an earlier worker had generated
    reused_tokens: int = 0  # leading tokens that were asked for before: their blocks are worth keeping for longer
    moves_away: bool = False  # another worker takes its KV over for good: the blocks here may be evicted first


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability of one token, and of the most likely alternatives at its position."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()  # (token id, token, logprob), most likely first


class EngineOutput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one engine step added to one request. The last one has a `finish_reason`."""

    request_id: RequestId
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id, when asked for
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token or string that ended it
    cached_tokens: int | None = None  # prompt tokens found in this engine's cache; on the first output
    pulled_tokens: int = 0  # prompt tokens fetched through `EngineRequest.kv`; on the first output
    kv: KvHandle | None = None  # with prefill_only, on the last output
    error: str | None = None  # with finish_reason "error"


# --- KV events: what an engine's prefix cache holds ---------------------------------------------------------------


class BlocksStored(msgspec.Struct, frozen=True, tag="s", array_like=True):
    """These blocks can now be reused."""

    hashes: list[BlockHash]


class BlocksRemoved(msgspec.Struct, frozen=True, tag="r", array_like=True):
    """These blocks are gone."""

    hashes: list[BlockHash]


class BlocksCleared(msgspec.Struct, frozen=True, tag="c", array_like=True):
    """The whole cache is gone."""


KvEvent = BlocksStored | BlocksRemoved | BlocksCleared


class KvEventBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one worker in order. `seq` grows by one a batch; a gap means: ask for a snapshot.

    A snapshot is a batch that begins with `BlocksCleared`, stands for all before it, and carries the `seq` of the
    last batch that it includes.
    """

    worker: WorkerId
    seq: int
    events: list[KvEvent]
    is_snapshot: bool = False


# --- load and membership ------------------------------------------------------------------------------------------


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


# --- routing ------------------------------------------------------------------------------------------------------


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asks, as far as routing has to know."""

    tenant: str = ""  # whom fair shares are counted for: the name of the API key
    session: str | None = None  # what belongs together, where the client says so


class RouteRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the router is told of a request. `block_hashes` cover the full blocks of the prompt, in order."""

    request_id: RequestId
    block_hashes: list[BlockHash]
    num_tokens: int  # of the prompt, resumed tokens included
    max_tokens: int
    priority: int = 0
    exclude: tuple[WorkerId, ...] = ()  # workers that this request was lost on
    caller: Caller = Caller()


class Assignment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a request runs. Without `prefill` the decode worker computes the prompt itself.

    With `source`, the worker that computes the prompt first pulls the KV of its first `source_tokens` from there.
    """

    request_id: RequestId
    decode: WorkerId
    prefill: WorkerId | None = None
    cached_tokens: int = 0  # prompt tokens expected in the cache of the worker that computes the prompt
    source: WorkerId | None = None
    source_tokens: int = 0
    reused_tokens: int = 0  # leading prompt tokens that some worker holds already: likely to be asked for again


# --- status -------------------------------------------------------------------------------------------------------


class Phase(StrEnum):
    """Life of a deployment."""

    STARTING = "starting"  # no worker is READY yet
    SERVING = "serving"  # the endpoint answers
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `hpcserve status` shows, and what a frontend is told when the workers change."""

    name: str
    phase: Phase
    model: str
    mode: str  # "aggregated" or "disaggregated"
    policy: str
    cluster: str  # "local" or "slurm"
    endpoint: str | None = None  # base URL, ends in /v1
    unix_socket: str | None = None  # path; the endpoint is there too, or only
    dashboard: str | None = None  # URL
    frontend_pid: int | None = None
    head_pid: int | None = None
    head_host: str | None = None
    started_at: float = 0.0  # Unix time
    wanted: dict[str, int] = {}  # workers by pool
    workers: tuple[WorkerInfo, ...] = ()
    load: dict[WorkerId, LoadReport] = {}
    num_waiting: int = 0  # requests that no worker was chosen for yet
    warnings: tuple[str, ...] = ()
    detail: str = ""  # why it failed
