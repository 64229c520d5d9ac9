"""How many bytes one token's KV has, from the model's config.json. Plain and latent attention only."""

from __future__ import annotations

import json
from typing import Any

from hpcserve.config import Config

_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "fp8": 1, "int8": 1}


def kv_bytes_per_token(config: Config, *, on_cpu: bool) -> int | None:
    """Return the size over all layers and GPUs, or None for a model that is not understood."""
    if config.engine.kind == "mock":
        return config.engine.mock.kv_bytes_per_token
    if config.model.path is None:
        return None
    try:
        model = json.loads((config.model.path / "config.json").read_text())
        return _size(model.get("text_config") or model, _dtype(config, model, on_cpu=on_cpu))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _size(model: dict[str, Any], dtype: str) -> int | None:
    if not _is_uniform(model):
        return None
    size, layers = _BYTES[dtype], int(model["num_hidden_layers"])
    if model.get("kv_lora_rank"):  # DeepSeek's latent attention keeps one vector for all heads
        return layers * size * (int(model["kv_lora_rank"]) + int(model["qk_rope_head_dim"]))
    heads = int(model["num_attention_heads"])
    width = int(model.get("head_dim") or int(model["hidden_size"]) // heads)
    return layers * size * 2 * int(model.get("num_key_value_heads") or heads) * width


def _is_uniform(model: dict[str, Any]) -> bool:
    """Return whether all layers keep the KV of all tokens."""
    if model.get("sliding_window") and model.get("use_sliding_window", True):
        return False
    return all(kind == "full_attention" for kind in model.get("layer_types") or ()) and "mamba_d_state" not in model


def _dtype(config: Config, model: dict[str, Any], *, on_cpu: bool) -> str:
    """Return the type that KV is kept in, as the vLLM engine chooses it."""
    kept = str(config.engine.vllm.args.get("kv_cache_dtype", "auto"))
    if kept != "auto":
        return "fp8" if kept.startswith("fp8") else kept
    if config.model.dtype != "auto":
        return config.model.dtype
    if on_cpu:
        return "float32"
    own = str(model.get("dtype") or model.get("torch_dtype") or "float32")
    return "bfloat16" if own == "float32" else own  # vLLM keeps no float32 unless it is told to
