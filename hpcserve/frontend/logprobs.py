"""Log probabilities in the two shapes of OpenAI's API. Values below -9999 (minus infinity) become that, as in vLLM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcserve.types import TokenLogprob

_LOWEST = -9999.0


def chat_logprobs(tokens: Iterable[TokenLogprob], num_top: int) -> dict[str, Any]:
    """Return the `logprobs` of a chat choice, with at most `num_top` alternatives a token."""
    return {
        "content": [
            {
                **_entry(each.token, each.logprob),
                "top_logprobs": [_entry(token, logprob) for _, token, logprob in each.top[:num_top]],
            }
            for each in tokens
        ]
    }


def completion_logprobs(tokens: Iterable[TokenLogprob], num_top: int, first_offset: int = 0) -> dict[str, Any]:
    """Return the `logprobs` of a completion choice; `first_offset` is where its first token starts in the text.

    `top_logprobs` holds the sampled token too, so up to `num_top` + 1 entries.
    """
    offsets, logprobs, texts, tops = [], [], [], []
    offset = first_offset
    for each in tokens:
        offsets.append(offset)
        offset += len(each.token)
        texts.append(each.token)
        logprobs.append(max(each.logprob, _LOWEST))
        tops.append(
            {each.token: max(each.logprob, _LOWEST)}
            | {token: max(logprob, _LOWEST) for _, token, logprob in each.top[:num_top]}
        )
    return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": texts, "top_logprobs": tops}


def _entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": max(logprob, _LOWEST), "bytes": list(token.encode("utf-8", "replace"))}
