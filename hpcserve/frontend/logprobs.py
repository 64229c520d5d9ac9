"""Log probabilities in the two shapes of OpenAI's API. Values below -9999 (minus infinity) become that, as in vLLM."""

from __future__ import annotations

from collections.abc import Iterable

from hpcserve.frontend.replies import AlternativeToken, ChatLogprobs, ChosenToken, CompletionLogprobs
from hpcserve.types import TokenLogprob

_LOWEST = -9999.0


def chat_logprobs(tokens: Iterable[TokenLogprob], num_top: int) -> ChatLogprobs:
    """Return the `logprobs` of a chat choice, with at most `num_top` alternatives a token."""
    return ChatLogprobs(content=[_chosen(each, num_top) for each in tokens])


def completion_logprobs(tokens: Iterable[TokenLogprob], num_top: int, first_offset: int = 0) -> CompletionLogprobs:
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
    return CompletionLogprobs(text_offset=offsets, token_logprobs=logprobs, tokens=texts, top_logprobs=tops)


def _chosen(token: TokenLogprob, num_top: int) -> ChosenToken:
    return ChosenToken(
        token=token.token,
        logprob=max(token.logprob, _LOWEST),
        bytes=_bytes(token.token),
        top_logprobs=[
            AlternativeToken(token=text, logprob=max(logprob, _LOWEST), bytes=_bytes(text))
            for _, text, logprob in token.top[:num_top]
        ],
    )


def _bytes(token: str) -> list[int]:
    return list(token.encode("utf-8", "replace"))
