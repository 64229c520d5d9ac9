"""Reads the small files of a model's directory: special tokens, chat template, sampling defaults. Loads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def read_chat_template(directory: Path) -> str | None:
    """Return the model's default chat template, wherever its makers put it; None if it has none."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _read_json(directory / "tokenizer_config.json").get("chat_template")
    template = template or _read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {each["name"]: each["template"] for each in template}.get("default")
    return template if isinstance(template, str) else None


def read_vocab_size(directory: Path) -> int:
    """Return how many token ids the model has embeddings for; 0 if `config.json` does not say."""
    config = _read_json(directory / "config.json")
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return size if isinstance(size, int) else 0


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
