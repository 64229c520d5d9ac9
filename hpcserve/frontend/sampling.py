"""From a validated body to what engines get: sampling parameters that fit the model's context and vocabulary."""

from __future__ import annotations

import msgspec

from hpcserve.errors import BadRequest, ContextTooLong
from hpcserve.frontend.schemas import GenerationBody
from hpcserve.frontend.terms import Terms
from hpcserve.frontend.tokenizer import Tokenizer
from hpcserve.types import EngineRequest, RequestId, Sampling


def engine_requests(
    terms: Terms, num_choices: int, request_id: str, first_index: int, token_ids: list[int], sampling: Sampling
) -> list[EngineRequest]:
    """Return one engine request a choice of one prompt; `first_index` is the index of its first choice."""
    requests = []
    for choice in range(num_choices):
        index = first_index + choice
        requests.append(
            EngineRequest(
                request_id=RequestId(f"{request_id}-{index}"),
                token_ids=token_ids,
                sampling=_with_seed(sampling, choice),
                priority=terms.priority,
                cache_salt=terms.cache_salt,
            )
        )
    return requests


def sampling_of(body: GenerationBody, tokenizer: Tokenizer, *, max_tokens: int, logprobs: int | None) -> Sampling:
    """Return the sampling parameters: the body's, else the model's recommended ones, else OpenAI's defaults."""
    defaults = tokenizer.sampling_defaults

    def either(given: float | None, name: str, default: float) -> float:
        return given if given is not None else defaults.get(name, default)

    if body.min_tokens > max_tokens:
        message = f"min_tokens ({body.min_tokens}) must be at most max_tokens ({max_tokens})"
        raise BadRequest(message, param="min_tokens")
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=either(body.temperature, "temperature", 1.0),
        top_p=either(body.top_p, "top_p", 1.0),
        top_k=max(0, int(either(body.top_k, "top_k", 0))),
        min_p=either(body.min_p, "min_p", 0.0),
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=either(body.repetition_penalty, "repetition_penalty", 1.0),
        logit_bias=_logit_bias(body.logit_bias, tokenizer.vocab_size),
        logprobs=logprobs,
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        include_stop=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
    )


def output_room(num_prompt_tokens: int, wanted: int | None, context: int) -> int:
    """Return the tokens that may be generated: `wanted`, or all that the context of so many tokens leaves.

    Raises `ContextTooLong` when the prompt, or prompt and `wanted` together, do not fit.
    """
    room = context - num_prompt_tokens
    if room < 1:
        raise ContextTooLong(
            f"the model's context is {context} tokens, and the prompt alone has {num_prompt_tokens}; shorten the prompt"
            f" to at most {context - 1}"
        )
    if wanted is None:
        return room
    if wanted > room:
        raise ContextTooLong(
            f"the model's context is {context} tokens, but the prompt's {num_prompt_tokens} and max_tokens {wanted}"
            f" make {num_prompt_tokens + wanted}; shorten the prompt or set max_tokens to at most {room}",
            param="max_tokens",
        )
    return wanted


def check_prompt(token_ids: list[int], vocab_size: int) -> None:
    """Raise `BadRequest` for a prompt without tokens, or with ids that the model does not have."""
    if not token_ids:
        raise BadRequest("the prompt is empty: it must have at least one token", param="prompt")
    largest = max(token_ids)
    if largest >= vocab_size:
        raise BadRequest(f"token id {largest} is not in the vocabulary of {vocab_size} tokens", param="prompt")


def _with_seed(sampling: Sampling, choice: int) -> Sampling:
    if choice == 0 or sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=sampling.seed + choice)


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float] | None:
    bias = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < vocab_size):
            message = f"logit_bias has the key {key[:40]!r}; keys are token ids from 0 to {vocab_size - 1}"
            raise BadRequest(message, param="logit_bias")
        bias[int(key)] = value
    return bias or None
