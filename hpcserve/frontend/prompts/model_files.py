"""Reads the small files of a model's directory: special tokens, chat template, sampling defaults. Loads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpcserve.config.models import ModelConfig
from hpcserve.errors import ConfigError

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_special_tokens(directory: Path) -> dict[str, str]:
    """Return the special tokens of `tokenizer_config.json` by name, such as `bos_token`."""
    config = _read_json(directory / "tokenizer_config.json")
    tokens = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        if isinstance(value, dict):  # an AddedToken, written out
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def read_chat_templates(directory: Path) -> dict[str, str]:
    """Return the model's chat templates by name ("default", "tool_use"), wherever its makers put them."""
    files = {file.stem: file for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    if (directory / "chat_template.jinja").is_file():
        files["default"] = directory / "chat_template.jinja"
    if files:
        return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    config = _read_json(directory / "tokenizer_config.json")
    given = config.get("chat_template") or _read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(given, list):  # several, by name
        return {each["name"]: each["template"] for each in given}
    return {"default": given} if isinstance(given, str) else {}


def read_vocab_size(directory: Path) -> int:
    """Return how many token ids the model has embeddings for; 0 if `config.json` does not say."""
    config = _read_json(directory / "config.json")
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return size if isinstance(size, int) else 0


def context_of(model: ModelConfig) -> int | None:
    """Return the context in tokens, as configured or as `config.json` has it; None where only the engine knows."""
    if model.max_model_len is not None or model.path is None:
        return model.max_model_len
    config = _read_json(model.path / "config.json")
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        return None
    context = config.get("max_position_embeddings")
    return context if isinstance(context, int) else None


def read_sampling_defaults(directory: Path) -> dict[str, float]:
    """Return what `generation_config.json` recommends, as vLLM's server applies it to requests that do not say."""
    config = _read_json(directory / "generation_config.json")
    return {name: config[name] for name in _SAMPLING_DEFAULTS if isinstance(config.get(name), int | float)}


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ConfigError(f"{file} is not valid JSON: {err}", param="model.path") from err
    return content if isinstance(content, dict) else {}
