"""A timing model in a JSON file: what `hpcserve bench` writes of a real engine, and simulations and the mock read.

Three numbers are a polynomial, highest power first: milliseconds of a prefill pass over its new prompt tokens, and of a
decode step over the share of the KV cache that is read. What a file leaves out is as published (see `timing`) or, of
sizes, as whoever reads it would have it anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from hpcserve.engine.mock.timing import TimingModel
from hpcserve.errors import ConfigError

_PUBLISHED = TimingModel()
_PROBED = (1, 1000, 100_000)  # tokens; time must not run backwards there
_Count = Annotated[int, msgspec.Meta(ge=1)]


class TimingFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The content of such a file. Sizes are those of the measured engine; nothing depends on `provenance`."""

    prefill_ms: tuple[float, float, float] = _PUBLISHED.prefill_ms
    decode_ms: tuple[float, float, float] = _PUBLISHED.decode_ms
    min_decode_ms: Annotated[float, msgspec.Meta(gt=0)] = _PUBLISHED.min_decode_ms
    kv_bytes_per_token: _Count | None = None
    num_kv_blocks: _Count | None = None
    block_size: _Count | None = None  # tokens
    max_batched_tokens: _Count | None = None  # in a step
    max_num_seqs: _Count | None = None  # in a step
    provenance: dict[str, Any] = {}  # who measured what, when, and how far the polynomials are off

    def model(self, kv_bytes_per_token: int, kv_bandwidth_bytes_per_s: float) -> TimingModel:
        """Return the timing model; KV size and bandwidth are the caller's."""
        return TimingModel(
            kv_bytes_per_token, kv_bandwidth_bytes_per_s, self.prefill_ms, self.decode_ms, self.min_decode_ms
        )


def read_timing(path: Path) -> TimingFile:
    """Return what a file says. Raises `ConfigError`."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=TimingFile)
    except OSError as err:
        raise ConfigError(f"cannot read the timing model {path}: {err.strerror or err}") from err
    except msgspec.DecodeError as err:
        valid = ", ".join(TimingFile.__struct_fields__)
        raise ConfigError(f"the timing model {path}: {err}; valid: {valid}") from err
    for num_tokens in _PROBED:
        if (took := found.model(1, 1.0).prefill_s(num_tokens)) < 0:
            raise ConfigError(f"the timing model {path}: prefill_ms gives {took * 1000:g} ms for {num_tokens} tokens")
    return found


def write_timing(path: Path, timing: TimingFile) -> None:
    """Write a file that `read_timing` reads. Raises `ConfigError` where that cannot be done."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(timing), indent=2) + b"\n")
    except OSError as err:
        raise ConfigError(f"cannot write the timing model {path}: {err.strerror or err}") from err
