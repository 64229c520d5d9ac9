"""A timing model from a JSON file: coefficients that were fitted to a real engine.

The file is an object with `prefill_ms`, `decode_ms` (three numbers each, highest power first: milliseconds over new
prompt tokens, and over the share of KV blocks in use) and `min_decode_ms`; what is left out is as published.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from hpcserve.engine.mock.timing import TimingModel
from hpcserve.errors import ConfigError

_PUBLISHED = TimingModel()


class _Coefficients(msgspec.Struct, forbid_unknown_fields=True):
    prefill_ms: tuple[float, float, float] = _PUBLISHED.prefill_ms
    decode_ms: tuple[float, float, float] = _PUBLISHED.decode_ms
    min_decode_ms: float = _PUBLISHED.min_decode_ms


def load_timing(path: Path | None, kv_bytes_per_token: int, kv_bandwidth_bytes_per_s: float) -> TimingModel:
    """Return the model of a file, or the published one. Raises `ConfigError`."""
    found = _Coefficients() if path is None else _read(path)
    if found.min_decode_ms <= 0:
        raise ConfigError(f"{path}: min_decode_ms is {found.min_decode_ms}, must be above 0")
    return TimingModel(
        kv_bytes_per_token, kv_bandwidth_bytes_per_s, found.prefill_ms, found.decode_ms, found.min_decode_ms
    )


def _read(path: Path) -> _Coefficients:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Coefficients)
    except OSError as err:
        raise ConfigError(f"cannot read the timing model {path}: {err.strerror or err}") from err
    except msgspec.DecodeError as err:
        raise ConfigError(
            f"the timing model {path}: {err}; valid: {', '.join(_Coefficients.__struct_fields__)}"
        ) from err
