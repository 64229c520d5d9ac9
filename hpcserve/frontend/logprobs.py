"""Log probabilities in the two shapes of OpenAI's API. Values below -9999 (minus infinity) become that, as in vLLM."""

from __future__ import annotations

from collections.abc import Iterable

from hpcserve.frontend.replies import AlternativeToken, ChatLogprobs, ChosenToken, CompletionLogprobs
from hpcserve.types import TokenLogprob

_LOWEST = -9999.0


def chat_logprobs(tokens: Iterable[TokenLogprob], num_top: int, as_ids: bool = False) -> ChatLogprobs:
    """Return the `logprobs` of a chat choice, with at most `num_top` alternatives a token.

    `as_ids`: "token_id:7" stands for the token, in every place but the bytes of what was sampled.
    """
    return ChatLogprobs(content=[_chosen(each, num_top, as_ids) for each in tokens])


def completion_logprobs(
    tokens: Iterable[TokenLogprob], num_top: int, first_offset: int = 0, as_ids: bool = False
) -> CompletionLogprobs:
    """Return the `logprobs` of a completion choice; `first_offset` is where its first token starts in the text.

    `top_logprobs` holds the sampled token too, so up to `num_top` + 1 entries. `as_ids`: "token_id:7" for tokens.
    """
    offsets, logprobs, texts, tops = [], [], [], []
    offset = first_offset
    for each in tokens:
        name = _name(each.token_id, each.token, as_ids)
        offsets.append(offset)
        offset += len(name)
        texts.append(name)
        logprobs.append(max(each.logprob, _LOWEST))
        alternatives = {_name(i, token, as_ids): max(logprob, _LOWEST) for i, token, logprob in each.top[:num_top]}
        tops.append({name: max(each.logprob, _LOWEST)} | alternatives)
    return CompletionLogprobs(text_offset=offsets, token_logprobs=logprobs, tokens=texts, top_logprobs=tops)


def _chosen(token: TokenLogprob, num_top: int, as_ids: bool) -> ChosenToken:
    return ChosenToken(
        token=_name(token.token_id, token.token, as_ids),
        logprob=max(token.logprob, _LOWEST),
        bytes=_bytes(token.token),
        top_logprobs=[
            AlternativeToken(token=(name := _name(i, text, as_ids)), logprob=max(logprob, _LOWEST), bytes=_bytes(name))
            for i, text, logprob in token.top[:num_top]
        ],
    )


def _name(token_id: int, token: str, as_ids: bool) -> str:
    return f"token_id:{token_id}" if as_ids else token


def _bytes(token: str) -> list[int]:
    return list(token.encode("utf-8", "replace"))
