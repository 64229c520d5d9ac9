"""What each tenant used of one frontend, by the tenant's name: never by anything of its key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, Metric


@dataclass
class TenantCounts:
    """Counters of one tenant."""

    requests: int = 0  # HTTP requests with its key
    rate_limited: int = 0  # of those, answered with a 429
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts' tokens, found in a prefix cache
    generated_tokens: int = 0
    first_used: float | None = None  # Unix time
    last_used: float | None = None  # Unix time

    def count_request(self, *, is_rate_limited: bool, now: float) -> None:
        """Count one HTTP request that ended at the Unix time `now`."""
        self.requests += 1
        self.rate_limited += is_rate_limited
        if self.first_used is None:
            self.first_used = now
        self.last_used = now


def tenant_families(tenants: Mapping[str, TenantCounts]) -> Iterable[Metric]:
    """Yield one family a counter, with a sample for each tenant."""
    used = [(name, each) for name, each in tenants.items()]
    yield _family("requests", "HTTP requests.", [(name, each.requests) for name, each in used])
    yield _family("rate_limited", "Requests answered with 429.", [(name, each.rate_limited) for name, each in used])
    yield _family("prompt_tokens", "Prompt tokens.", [(name, each.prompt_tokens) for name, each in used])
    yield _family("cached_prompt_tokens", "Of those, cached.", [(name, each.cached_tokens) for name, each in used])
    yield _family("generation_tokens", "Generated tokens.", [(name, each.generated_tokens) for name, each in used])


def _family(name: str, text: str, values: Iterable[tuple[str, int]]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"hpcserve_tenant_{name}", text, labels=("tenant",))
    for tenant, value in values:
        family.add_metric([tenant], value)
    return family
