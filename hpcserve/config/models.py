"""The configuration, as people write it. Every field has a default that works on one machine; unknown keys are errors.

How the values of files, environment and flags are put together is in `load.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from hpcserve.config.planning_models import PlannerConfig, RenewalConfig
from hpcserve.config.routing_models import KvConfig, QueueConfig, RouterConfig
from hpcserve.config.section import Section
from hpcserve.config.service_models import (
    BatchesConfig,
    DashboardConfig,
    FrontendConfig,
    SecurityConfig,
    TracingConfig,
)

__all__ = [
    "Config",
    "FrontendConfig",
    "MockConfig",
    "ModelConfig",
    "PoolsConfig",
    "QueueConfig",
    "RouterConfig",
    "Section",
    "SecurityConfig",
    "SlurmConfig",
]


_WALLTIME = r"^(\d+-\d{1,2}(:\d{1,2}){0,2}|\d+(:\d{1,2}){0,2})$"
_MEMORY = r"^\d+(\.\d+)? ?[kKMGT]i?B?$"


class ModelConfig(Section):
    """The model and how it is cut over GPUs."""

    path: Path | None = Field(None, description="directory with config.json and tokenizer.json; not needed by the mock")
    name: str | None = Field(None, description="name in the API; default: the directory's name")
    max_model_len: PositiveInt | None = Field(None, description="context in tokens; default: the model's own")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="of weights and KV; auto: the model's own, on CPUs float32"
    )
    tensor_parallel: PositiveInt | None = Field(None, description="GPUs of one engine; default: GPUs of its job")
    chat_template: Path | None = Field(None, description="Jinja file that replaces the tokenizer's template")
    tool_parser: str = Field(
        "auto", description="vLLM's parser for tool calls; auto: the one of the model's family; none: no tools"
    )
    reasoning_parser: str = Field("none", description="vLLM's parser for reasoning, such as qwen3; none: no parser")


class MockConfig(Section):
    """The mock engine: real scheduling and paging, simulated compute."""

    speedup: Annotated[float, Field(gt=0)] = Field(1.0, description="simulated over real time; .inf for no delay")
    num_kv_blocks: PositiveInt = Field(16384, description="size of the KV cache, in blocks of engine.block_size")
    max_num_seqs: PositiveInt = Field(256, description="sequences in a step")
    max_batched_tokens: PositiveInt = Field(8192, description="tokens in a step")
    kv_bytes_per_token: PositiveInt = Field(131072, description="with the bandwidth: how long moving KV takes")
    kv_bandwidth_gb_per_s: PositiveFloat = Field(50.0, description="between two workers, in 10^9 bytes a second")
    load_s: Annotated[float, Field(ge=0)] = Field(0.0, description="simulated time to load the model")
    timing: Path | None = Field(None, description="what `hpcserve bench` wrote; default: the published timing model")
    kv_events: bool = Field(True, description="tell the router what the prefix cache holds; if not, it has to guess")


class VllmConfig(Section):
    """The vLLM engine. `args` are AsyncEngineArgs, passed as they are."""

    args: dict[str, Any] = Field(default_factory=dict, description="vLLM's AsyncEngineArgs, passed as they are")
    in_process: bool | None = Field(None, description="engine core as a thread of the agent; default: on the CPU only")


class EngineConfig(Section):
    """Which engine runs on the workers."""

    kind: Literal["vllm", "mock"] = Field("vllm", description="what runs the model")
    block_size: PositiveInt = Field(32, description="tokens in a KV block")
    mock: MockConfig = MockConfig()
    vllm: VllmConfig = VllmConfig()


class LocalConfig(Section):
    """Workers as processes of this machine."""

    threads: PositiveInt | None = Field(None, description="CPU threads of one engine; default: cores over workers")


class SlurmConfig(Section):
    """What is asked of Slurm for every worker. One job holds one worker."""

    partition: str | None = Field(None, description="default: the cluster's")
    account: str | None = Field(None, description="default: the user's")
    qos: str | None = Field(None, description="quality of service; default: the account's")
    constraint: str | None = Field(None, description="node features, in Slurm's syntax")
    walltime: str | None = Field(
        None,
        pattern=_WALLTIME,
        description="[days-]hours:minutes:seconds, or minutes; default: the partition's",
    )
    cores: PositiveInt = Field(4, description="of one worker")
    memory: str | None = Field(
        None,
        pattern=_MEMORY,
        description="a number and its unit, such as 64GB; default: what the partition gives",
    )
    exclusive: bool = Field(False, description="a whole node, with all its GPUs, for every worker; --nodes sets it")
    gpus: Annotated[int, Field(ge=0)] | None = Field(
        None, description="GPUs of one worker; default: 1, or without asking all of the node's if exclusive"
    )
    gpu_request: Literal["gres", "gpus-per-node", "gpus-per-task", "none"] = Field(
        "gres", description="how GPUs are asked for; none: not at all"
    )
    gpu_type: str | None = Field(None, description="such as a100, where the site tells types apart")
    extra_directives: list[str] = Field(default_factory=list, description="lines put after #SBATCH")
    skip_directives: list[str] = Field(default_factory=list, description="lines that hold one of these are left out")
    modules: list[str] = Field(default_factory=list, description="loaded before the worker starts")
    prologue: list[str] = Field(default_factory=list, description="shell lines run before the worker")
    python: str | None = Field(None, description="interpreter on the compute nodes; default: this one")
    head: Literal["here", "job"] = Field(
        "here", description="where the head and the endpoint run: where `up` is typed, or in a small Slurm job"
    )
    head_partition: str | None = Field(None, description="of the head's job; default: the workers'")
    head_walltime: str | None = Field(
        None,
        pattern=_WALLTIME,
        description="of the head's job, which comes back when it is over; default: the partition's",
    )
    head_cores: PositiveInt = Field(2, description="of the head's job")
    head_memory: str = Field("4GB", pattern=_MEMORY, description="of the head's job")

    @property
    def requested_gpus(self) -> int:
        """GPUs to ask for by number; 0 where none are, or where they come with the whole node."""
        if self.gpu_request == "none":
            return 0
        return self.gpus if self.gpus is not None else int(not self.exclusive)


class ClusterConfig(Section):
    """Where workers come from."""

    kind: Literal["auto", "local", "slurm", "mpi"] = Field(
        "auto", description="auto: slurm where its controller answers; mpi: the ranks that mpirun or srun started"
    )
    interface: str | None = Field(None, description="network interface that workers are reached on, such as ib0")
    scratch: Path | None = Field(None, description="node-local directory; default: $TMPDIR, else /tmp")
    start_timeout_s: PositiveFloat = Field(600.0, description="from a job's start to READY")
    drain_timeout_s: Annotated[float, Field(ge=0)] = Field(
        20.0, description="of a worker that was told to end: what would take longer is moved to another one at once"
    )
    orphan_timeout_s: PositiveFloat = Field(600.0, description="without a head; then a worker ends by itself")
    local: LocalConfig = LocalConfig()
    slurm: SlurmConfig = SlurmConfig()


class PoolsConfig(Section):
    """How many workers of which kind."""

    mode: Literal["aggregated", "disaggregated"] = Field(
        "aggregated", description="whether prefill and decode have workers of their own"
    )
    workers: PositiveInt = Field(1, description="aggregated: workers that prefill and decode")
    prefill: PositiveInt = Field(1, description="disaggregated: prefill workers")
    decode: PositiveInt = Field(1, description="disaggregated: decode workers")

    @property
    def sizes(self) -> dict[str, int]:
        """Workers wanted, by pool."""
        if self.mode == "aggregated":
            return {"both": self.workers}
        return {"prefill": self.prefill, "decode": self.decode}


class Config(Section):
    """One deployment: a namespace of its own."""

    name: str = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$",
        description="lower-case letters, digits and dashes, at most 40, beginning with a letter or digit",
    )
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    cluster: ClusterConfig = ClusterConfig()
    pools: PoolsConfig = PoolsConfig()
    router: RouterConfig = RouterConfig()
    frontend: FrontendConfig = FrontendConfig()
    security: SecurityConfig = SecurityConfig()
    dashboard: DashboardConfig = DashboardConfig()
    kv: KvConfig = KvConfig()
    batches: BatchesConfig = BatchesConfig()
    renewal: RenewalConfig = RenewalConfig()
    planner: PlannerConfig = PlannerConfig()
    tracing: TracingConfig = TracingConfig()
    strict: bool = Field(False, description="refuse fallbacks instead of warning about them")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="of hpcserve's own log records")
    log_format: Literal["text", "json"] = Field("text", description="json: one object a line")

    @property
    def served_name(self) -> str:
        """Name of the model in the API."""
        if self.model.name:
            return self.model.name
        return self.model.path.name if self.model.path else "mock"

    @property
    def moves_kv(self) -> bool:
        """Whether KV goes from worker to worker: prefilled for another, or pulled as a warm prefix."""
        if self.pools.mode == "disaggregated":
            return True
        return self.router.policy == "kv" and self.router.pull and self.pools.workers > 1
