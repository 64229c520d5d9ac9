"""What a run has done so far, in numbers. Counts; draws and prints nothing."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

_WINDOW_S = 30.0
_SAMPLE_S = 0.5


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    """Of chats and completions, and, by other names, of responses."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode


@dataclass
class Tally:
    """Of one run; what earlier runs of the same ledger did is in `num_before` and in the counts of requests only."""

    num_requests: int
    num_before: int = 0  # finished by earlier runs
    num_done: int = 0  # finished by this one, on disk
    num_failed: int = 0  # of all that are finished
    num_retries: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    _samples: deque[tuple[float, int, int, int]] = field(default_factory=deque, repr=False)

    @property
    def num_finished(self) -> int:
        """Requests that need not be sent any more."""
        return self.num_before + self.num_done

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first request could be sent."""
        return time.monotonic() - self.started

    def add_usage(self, body: bytes) -> None:
        """Count the tokens of an answer, if it says how many they are."""
        try:
            usage = _decode(body).usage or _Usage()
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        details = usage.prompt_tokens_details or usage.input_tokens_details
        self.prompt_tokens += usage.prompt_tokens + usage.input_tokens
        self.output_tokens += usage.completion_tokens + usage.output_tokens
        self.cached_tokens += details.cached_tokens if details else 0

    def rates(self) -> tuple[float, float, float]:
        """Return requests, prompt tokens and output tokens a second, over the last half minute."""
        now = time.monotonic()
        samples = self._samples
        if not samples:
            samples.append((self.started, 0, 0, 0))
        if now - samples[-1][0] >= _SAMPLE_S:
            samples.append((now, self.num_done, self.prompt_tokens, self.output_tokens))
        while len(samples) > 2 and now - samples[0][0] > _WINDOW_S:
            samples.popleft()
        then, *before = samples[0]
        seconds = max(now - then, 1e-3)
        done, prompt, output = (
            (count - old) / seconds
            for count, old in zip((self.num_done, self.prompt_tokens, self.output_tokens), before, strict=True)
        )
        return done, prompt, output

    def eta_s(self) -> float | None:
        """Return the seconds until all is done at the present rate; None while nothing is known."""
        rate = self.rates()[0]
        return (self.num_requests - self.num_finished) / rate if rate > 0 else None

    def summary(self, gpu_s: float | None = None) -> dict[str, Any]:
        """Return the run as a JSON object; `gpu_s` are seconds of all GPUs together, where that is known."""
        seconds = self.elapsed_s
        result: dict[str, Any] = {
            "requests": self.num_requests,
            "finished": self.num_finished,
            "finished_before": self.num_before,
            "failed": self.num_failed,
            "retries": self.num_retries,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "seconds": round(seconds, 3),
            "requests_per_s": round(self.num_done / seconds, 3) if seconds else 0.0,
            "prompt_tokens_per_s": round(self.prompt_tokens / seconds, 3) if seconds else 0.0,
            "output_tokens_per_s": round(self.output_tokens / seconds, 3) if seconds else 0.0,
        }
        if gpu_s:
            result["gpu_hours"] = round(gpu_s / 3600, 4)
        return result
