"""One run from start to end: an engine as an agent would start it, measured, fitted, and stopped whatever happens."""

from __future__ import annotations

import math
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from hpcserve import __version__
from hpcserve.agent.scratch import scratch_directory
from hpcserve.bench.decode import measure_decode, plan_decode
from hpcserve.bench.fit import fit_timing, polynomial
from hpcserve.bench.kv_size import kv_bytes_per_token
from hpcserve.bench.prefill import measure_prefill, prefill_lengths
from hpcserve.bench.probe import Clock, Probe
from hpcserve.bench.prompts import Prompts, vocab_size
from hpcserve.bench.result import BenchResult, DecodePoint, Fit, PrefillPoint
from hpcserve.bench.verdict import find_warnings
from hpcserve.config import Config
from hpcserve.engine.factory import make_engine
from hpcserve.engine.protocol import AsyncEngine, EngineContext
from hpcserve.errors import ConfigError
from hpcserve.types import EngineInfo, Role, WorkerId

_MAX_SHARE = 0.85  # of the KV cache; partial blocks and what is generated need the rest
_ASSUMED_BATCHED_TOKENS = 2048  # of an engine that does not say
_ASSUMED_NUM_SEQS = 64
_WARM_UP_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    max_prompt: int | None = None  # tokens; None: what fits into a pass
    context: int | None = None  # tokens of each sequence that decodes; None: short ones and long ones
    quick: bool = False  # fewer points, fewer repeats

    @property
    def repeats(self) -> int:
        """Passes over each length."""
        return 2 if self.quick else 5

    @property
    def fill_s(self) -> float:
        """About how long filling the KV cache may take; where that is not enough less of it is filled."""
        return 6.0 if self.quick else 40.0


async def bench(
    config: Config, effort: Effort, say: Callable[[str], None], read_clock: Callable[[], float] | None = None
) -> BenchResult:
    """Measure the engine that the configuration names. Cancelling it stops the engine.

    `say` is told what is under way; `read_clock` gives seconds, by default of the system's best clock. Raises
    `ConfigError` and `EngineError`.
    """
    clock = _clock(config, read_clock)
    say(f"starting {config.engine.kind}")
    async with _engine(config) as (engine, info):
        probe = Probe(engine, Prompts(vocab_size(config.model.path)), clock)
        prefill = await _measure_prefill(probe, info, effort, say)
        decode = await _measure_decode(probe, info, prefill, effort, say)
    fit = fit_timing(prefill, decode)
    prefill, decode = _with_fit(fit, prefill, decode)
    return BenchResult(
        info=info,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        fit=fit,
        prefill=prefill,
        decode=decode,
        kv_bytes_per_token=_kv_bytes_per_token(config),
        warnings=tuple(find_warnings(prefill, decode)),
    )


async def _measure_prefill(
    probe: Probe, info: EngineInfo, effort: Effort, say: Callable[[str], None]
) -> tuple[PrefillPoint, ...]:
    longest = _longest_prompt(info, effort)
    lengths = prefill_lengths(longest, quick=effort.quick)
    say(f"prefill: {len(lengths)} lengths up to {longest:,} tokens, {effort.repeats} times")
    await _warm_up(probe, lengths)
    return tuple(await measure_prefill(probe, lengths, effort.repeats))


async def _measure_decode(
    probe: Probe, info: EngineInfo, prefill: tuple[PrefillPoint, ...], effort: Effort, say: Callable[[str], None]
) -> tuple[DecodePoint, ...]:
    per_token_s = statistics.median(point.pass_ms / point.num_tokens for point in prefill[-2:]) / 1000
    capacity = info.num_kv_blocks * info.block_size
    real_s = effort.fill_s * probe.clock.speedup / 2  # once with long contexts, once with short ones
    plan = plan_decode(
        info,
        context=effort.context,
        max_num_seqs=info.max_num_seqs or _ASSUMED_NUM_SEQS,
        max_share=min(_MAX_SHARE, real_s / (per_token_s * capacity)),
        quick=effort.quick,
    )
    contexts = " and ".join(f"{context:,}" for context in plan.contexts)
    say(f"decode: batches of {contexts} tokens a sequence, up to {plan.stages[-1]:.0%} of {capacity:,} tokens of KV")
    return tuple(await measure_decode(probe, plan))


async def _warm_up(probe: Probe, lengths: list[int]) -> None:
    """Let the engine allocate, tune and compile what it does at first use."""
    for length in (*lengths, lengths[-1]):
        await probe.first_token_s(length)
    async with probe.open():
        await probe.reached(probe.start(lengths[0], _WARM_UP_TOKENS), _WARM_UP_TOKENS)


@asynccontextmanager
async def _engine(config: Config) -> AsyncIterator[tuple[AsyncEngine, EngineInfo]]:
    with scratch_directory(config, "bench") as scratch:
        context = EngineContext(
            worker=WorkerId("bench-0-0"),
            role=Role.BOTH,
            host="127.0.0.1",
            moves_kv=config.moves_kv,
            scratch=scratch,
        )
        engine = make_engine(config, context)
        try:
            yield engine, await engine.start(lambda events: None)
        finally:
            await engine.stop()


def _with_fit(
    fit: Fit, prefill: tuple[PrefillPoint, ...], decode: tuple[DecodePoint, ...]
) -> tuple[tuple[PrefillPoint, ...], tuple[DecodePoint, ...]]:
    def step_ms(share: float) -> float:
        return max(fit.min_decode_ms, polynomial(fit.decode_ms, share))

    return (
        tuple(msgspec.structs.replace(p, fitted_ms=polynomial(fit.prefill_ms, p.num_tokens)) for p in prefill),
        tuple(msgspec.structs.replace(p, fitted_ms=step_ms(p.share)) for p in decode),
    )


def _longest_prompt(info: EngineInfo, effort: Effort) -> int:
    """Return the tokens of the longest prompt that is computed in one pass, with room for a token of output."""
    fits = min(
        info.max_batched_tokens or _ASSUMED_BATCHED_TOKENS,
        info.max_model_len - 1,
        info.num_kv_blocks * info.block_size // 2 - 1,  # two prompts are there at a time
    )
    return min(fits, effort.max_prompt or fits)


def _clock(config: Config, read: Callable[[], float] | None) -> Clock:
    speedup = config.engine.mock.speedup if config.engine.kind == "mock" else 1.0
    if math.isinf(speedup):
        raise ConfigError("engine.mock.speedup is .inf: an engine that takes no time cannot be measured")
    return Clock(speedup) if read is None else Clock(speedup, read)


def _kv_bytes_per_token(config: Config) -> int | None:
    if config.engine.kind == "mock":
        return kv_bytes_per_token(config, on_cpu=True)
    from hpcserve.engine.vllm.environment import is_cpu_build

    return kv_bytes_per_token(config, on_cpu=is_cpu_build())
