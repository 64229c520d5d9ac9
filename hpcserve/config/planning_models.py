"""The parts of the configuration that speak of how long workers live, and of how many there are."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from hpcserve.config.section import Section


class RenewalConfig(Section):
    """What is done about a worker whose walltime ends, and about nodes that fail."""

    enabled: bool = Field(True, description="submit a successor before a worker's walltime ends")
    lead_s: PositiveFloat | None = Field(
        None, description="how long before the end; default: learned from waits in the queue and from load times"
    )
    min_lead_s: PositiveFloat = Field(60.0, description="the least that a learned lead is, beyond the estimate")
    leave_s: Annotated[float, Field(ge=0)] = Field(
        20.0, description="before its walltime ends a worker has handed over everything that it runs"
    )
    exclude_after: PositiveInt = Field(3, description="failures in a row on one node, then it gets no more workers")
    max_backoff_s: PositiveFloat = Field(60.0, description="longest pause before a failed worker is launched again")


class PlannerConfig(Section):
    """How many workers there are and what each does, changed while serving to keep to latencies."""

    enabled: bool = Field(False, description="whether roles and numbers change by themselves")
    interval_s: PositiveFloat = Field(5.0, description="between two decisions")
    ttft_ms: PositiveFloat = Field(1000.0, description="90 of 100 requests have their first token within")
    itl_ms: PositiveFloat = Field(50.0, description="90 of 100 tokens come within")
    flip_roles: bool = Field(True, description="disaggregated: turn prefill into decode workers and back")
    min_workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="of all pools together; default: as many as pools asks for; 0: down to nothing when idle"
    )
    max_workers: PositiveInt | None = Field(
        None, description="of all pools together; default: as many as pools asks for"
    )
    num_intervals: PositiveInt = Field(3, description="that a change must be wanted for in a row")
    flip_pause_s: Annotated[float, Field(ge=0)] = Field(15.0, description="between two changes of roles")
    shrink_s: PositiveFloat = Field(
        300.0, description="for so long fewer workers must have been enough; or for as long as one takes to come back"
    )
    idle_s: PositiveFloat = Field(600.0, description="without a request; then workers above the minimum are given back")
