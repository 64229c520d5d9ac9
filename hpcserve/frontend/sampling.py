"""From a validated body to what engines get: sampling parameters that fit the model's context and vocabulary."""

from __future__ import annotations

import msgspec

from hpcserve.errors import BadRequest, ContextTooLong
from hpcserve.frontend.access.terms import Terms
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.frontend.schemas import GenerationBody
from hpcserve.types import ChatParsing, EngineRequest, RequestId, Sampling, StructuredOutput


def engine_requests(
    terms: Terms,
    num_choices: int,
    request_id: str,
    first_index: int,
    token_ids: list[int],
    sampling: Sampling,
    parsing: ChatParsing | None = None,
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
                parsing=parsing,
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
        allowed_token_ids=_allowed_token_ids(body.allowed_token_ids, tokenizer.vocab_size),
        bad_words=tuple(body.bad_words),
        structured=structure_of(body),
    )


def structure_of(body: GenerationBody) -> StructuredOutput | None:
    """Return what the text has to look like; None for any. Raises `BadRequest` if the body says it twice."""
    wanted = None if body.response_format is None else body.response_format.structure()
    if body.structured_outputs is None:
        return wanted
    if wanted is not None:
        raise BadRequest("send either response_format or structured_outputs, not both", param="structured_outputs")
    return body.structured_outputs.structure()


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


def prompt_limit(body: GenerationBody, max_tokens: int | None, context: int) -> int | None:
    """Return how many tokens of the prompt are kept: `truncate_prompt_tokens`, or what a context leaves for -1.

    Raises `BadRequest` if there is no room for so many.
    """
    kept = body.truncate_prompt_tokens
    if kept is None:
        return None
    room = context - (max_tokens or 1)
    if kept == -1 and room > 0:
        return room
    if not 0 < kept < context:
        message = f"truncate_prompt_tokens must be -1 or from 1 to {context - 1}, got {kept}"
        raise BadRequest(message, param="truncate_prompt_tokens")
    return kept


def truncated(token_ids: list[int], body: GenerationBody, limit: int | None) -> list[int]:
    """Return at most `limit` of the tokens, without those on the side that the body says."""
    if limit is None or len(token_ids) <= limit:
        return token_ids
    return token_ids[:limit] if body.truncation_side == "right" else token_ids[-limit:]


def check_prompt(token_ids: list[int], vocab_size: int, param: str = "prompt") -> None:
    """Raise `BadRequest` for a prompt without tokens, or with ids that the model does not have."""
    if not token_ids:
        raise BadRequest("the prompt is empty: it must have at least one token", param=param)
    largest = max(token_ids)
    if largest >= vocab_size:
        raise BadRequest(f"token id {largest} is not in the vocabulary of {vocab_size} tokens", param=param)


def _with_seed(sampling: Sampling, choice: int) -> Sampling:
    if choice == 0 or sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=sampling.seed + choice)


def _allowed_token_ids(given: list[int] | None, vocab_size: int) -> tuple[int, ...] | None:
    if given is None:
        return None
    if max(given) >= vocab_size:
        message = f"allowed_token_ids has {max(given)}; token ids are from 0 to {vocab_size - 1}"
        raise BadRequest(message, param="allowed_token_ids")
    return tuple(given)


def _logit_bias(given: dict[str, float], vocab_size: int) -> dict[int, float] | None:
    bias = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < vocab_size):
            message = f"logit_bias has the key {key[:40]!r}; keys are token ids from 0 to {vocab_size - 1}"
            raise BadRequest(message, param="logit_bias")
        bias[int(key)] = value
    return bias or None
