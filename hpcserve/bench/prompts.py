"""Prompts that no cache can know: random tokens, other ones each time. Their text means nothing."""

from __future__ import annotations

import json
import random
from pathlib import Path

from hpcserve.config.builtin_tokenizer import NUM_BYTES
from hpcserve.types import EngineRequest, RequestId, Sampling


class Prompts:
    """An endless supply; the same one for the same seed."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self._vocab_size = vocab_size
        self._random = random.Random(seed)  # noqa: S311  to be unlike each other, not to be secret
        self._num_made = 0

    def request(self, num_tokens: int, max_tokens: int) -> EngineRequest:
        """Return a request whose prompt has `num_tokens` tokens and which ends after `max_tokens` new ones."""
        self._num_made += 1
        return EngineRequest(
            request_id=RequestId(f"bench-{self._num_made}"),
            token_ids=self._random.choices(range(self._vocab_size), k=num_tokens),
            sampling=Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
        )


def vocab_size(model: Path | None) -> int:
    """Return how many token ids are good: the smallest number that the model's files name, else bytes."""
    try:
        config = json.loads((model / "config.json").read_text()) if model is not None else {}
    except (OSError, ValueError):
        return NUM_BYTES
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    return size if isinstance(size, int) and size > 0 else NUM_BYTES
