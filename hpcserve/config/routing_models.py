"""The parts of the configuration that speak of where requests go and how their KV travels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from hpcserve.config.section import Section


class QueueConfig(Section):
    """Where requests wait for a worker that has its hands free. Policy kv only: the others place at once."""

    order: Literal["shortest", "fcfs"] = Field(
        "shortest", description="who is next: the least to compute, as long as nobody waits too long; or who came first"
    )
    max_requests: PositiveInt = Field(16384, description="waiting; more get a 503 that says when to try again")
    max_requests_per_tenant: PositiveInt | None = Field(
        None, description="waiting of one tenant; more get a 429; default: no limit of their own"
    )
    max_wait_s: PositiveFloat = Field(600.0, description="who waits longer gets a 503")


class RouterConfig(Section):
    """How a worker is chosen."""

    policy: Literal["random", "round_robin", "least_loaded", "power_of_two", "session", "dynamo", "kv"] = Field(
        "kv",
        description="kv, dynamo: near the request's cached prefix; session: one worker a session; "
        "the others look at neither",
    )
    min_remote_prefill_tokens: Annotated[int, Field(ge=0)] = Field(
        256, description="prompts with fewer uncached tokens than this prefill on their decode worker"
    )
    pull: bool = Field(True, description="kv: warm prefixes are pulled from another worker where that is faster")
    pull_tokens_per_s: PositiveFloat = Field(350_000.0, description="tokens of KV moved between two workers a second")
    pull_latency_ms: Annotated[float, Field(ge=0)] = Field(5.0, description="what a pull takes besides")
    approximate_ttl_s: PositiveFloat = Field(
        600.0, description="how long a prompt is taken to be cached by an engine that has no KV events"
    )
    queue: QueueConfig = QueueConfig()
    seed: int = Field(0, description="of the policies random, power_of_two and session")


class KvConfig(Section):
    """How KV travels from worker to worker."""

    transport: Literal["auto", "nixl", "mpi"] = Field(
        "auto", description="auto: nixl; mpi: between the ranks of one allocation, also on fabrics that NIXL lacks"
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        30.0, description="over MPI: how long a worker may be silent before what it was asked for is computed instead"
    )
    preflight: bool = Field(False, description="before READY, check that KV pulled from another worker arrives intact")
    preflight_min_gb_per_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="a worker that pulls more slowly is refused, in 10^9 bytes a second; 0: any speed will do"
    )
