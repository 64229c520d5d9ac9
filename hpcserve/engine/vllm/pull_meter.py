"""Fits what pulls of KV took: so much each, and so much a token. Knows nothing of queues; the router reckons those."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

_NEWEST = 32  # pulls that count
_ENOUGH = 3  # pulls before anything is said: the first one between two engines shakes hands


@dataclass
class PullMeter:
    """A line through the newest pulls, by the median of the slopes between any two of them (Theil and Sen).

    The median leaves out the pulls that something held up. Where no rate can be seen, because all pulls were about as
    long or because the tokens hardly count, the latency stands for all that a pull takes.
    """

    tokens_per_s: float | None = None
    latency_ms: float | None = None
    _pulls: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_NEWEST))

    def add(self, num_tokens: int, seconds: float) -> None:
        """Take one pull."""
        self._pulls.append((num_tokens, seconds))
        if len(self._pulls) < _ENOUGH:
            return
        slope = self._slope()
        self.tokens_per_s = 1 / slope if slope > 0 else None
        self.latency_ms = max(0.0, 1000 * median(seconds - slope * tokens for tokens, seconds in self._pulls))

    def _slope(self) -> float:
        """Return seconds a token; 0 where none can be told."""
        far = max(tokens for tokens, _ in self._pulls) / 4  # between pulls of nearly one length there is only noise
        pulls = sorted(self._pulls)
        slopes = [
            (later_s - sooner_s) / (more - fewer)
            for index, (fewer, sooner_s) in enumerate(pulls)
            for more, later_s in pulls[index + 1 :]
            if more - fewer >= far
        ]
        return max(0.0, median(slopes)) if slopes else 0.0
