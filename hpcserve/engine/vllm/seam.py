"""Has the text of a request go on right where the prompt ends and what was generated begins, on this worker or before.

vLLM's detokenizer begins at the prompt's end. Three things go wrong there. A prompt that ends within a character (some
of its bytes are tokens still to come) is repeated as if it were generated. Of a request that is resumed, a stop string
that an earlier worker began is not found. And text which that one held back, because it could be the beginning of a
stop string, is lost. So what vLLM makes for a request is wrapped, in the process that has the client: its detokenizer
has read the resumed tokens, and has given out exactly what the earlier worker had.
"""

from __future__ import annotations

import copy
from typing import Any

import msgspec

from hpcserve.engine.vllm.grammar import num_resumed
from hpcserve.types import EngineOutput, EngineRequest

_LONGEST_CHARACTER = 4  # bytes, and so at most as many tokens
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def continue_texts() -> str | None:
    """Wrap what vLLM makes, once. Returns why that is not possible; imports vLLM."""
    try:
        from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer
        from vllm.v1.engine.logprobs import LogprobsProcessor, append_logprobs_for_next_position

        make, make_logprobs = IncrementalDetokenizer.from_new_request, LogprobsProcessor.from_new_request
        for attribute in (BaseIncrementalDetokenizer.decode_next, BaseIncrementalDetokenizer.get_next_output_text):
            assert callable(attribute)
    except (ImportError, AttributeError) as err:
        return f"this vLLM makes its texts in another way ({err})"
    if hasattr(make, "__wrapped__"):
        return None

    def make_and_read(cls: Any, tokenizer: Any, request: Any) -> Any:
        skips = request.sampling_params.skip_special_tokens
        begins_at = len(request.prompt_token_ids) - num_resumed(request.sampling_params)
        whole_until = begins_at - _num_incomplete(tokenizer, request.prompt_token_ids[:begins_at], skips=skips)
        if whole_until == len(request.prompt_token_ids):
            return make(tokenizer, request)
        detokenizer = make(tokenizer, _with_prompt(request, request.prompt_token_ids[:whole_until]))
        if isinstance(detokenizer, BaseIncrementalDetokenizer):
            _read(detokenizer, request, whole_until, begins_at)
        return detokenizer

    def make_with_context(cls: Any, tokenizer: Any, request: Any) -> Any:
        processor = make_logprobs(tokenizer, request)
        num_context = min(_LONGEST_CHARACTER, num_resumed(request.sampling_params))
        if processor.logprobs is not None and num_context:
            for token_id in request.prompt_token_ids[-num_context:]:  # a token's text may need the bytes before it
                append_logprobs_for_next_position(processor.logprobs, [token_id], [0.0], [""], 1, 0)
        return processor

    make_and_read.__wrapped__ = make  # type: ignore[attr-defined]
    IncrementalDetokenizer.from_new_request = classmethod(make_and_read)
    LogprobsProcessor.from_new_request = classmethod(make_with_context)
    return None


def without_held_back(request: EngineRequest, last: EngineOutput) -> EngineOutput:
    """Return the last output of an aborted request without the text that would be held back if it went on."""
    stops = request.sampling.stop
    if request.streams or request.num_resumed:  # all else was given out before
        return msgspec.structs.replace(last, text="")
    num_held = max((len(stop) for stop in stops), default=1) - 1 if not request.sampling.include_stop else 0
    return msgspec.structs.replace(last, text=last.text[:-num_held]) if num_held else last


def _with_prompt(request: Any, token_ids: list[int]) -> Any:
    other = copy.copy(request)
    other.prompt_token_ids = token_ids
    return other


def _read(detokenizer: Any, request: Any, begins_at: int, generated_at: int) -> None:
    """Read the prompt from `begins_at` on, and give out what whoever generated the end of it has given out."""
    num_before = len(detokenizer.token_ids)
    for token_id in request.prompt_token_ids[begins_at:]:
        detokenizer.token_ids.append(token_id)
        detokenizer.output_text += detokenizer.decode_next(token_id)
    num_of_prompt = generated_at - begins_at
    if hasattr(detokenizer, "prompt_len"):  # the slow one keeps all tokens
        detokenizer.prompt_len += num_of_prompt
    else:
        del detokenizer.token_ids[num_before : num_before + num_of_prompt]
    if detokenizer.min_tokens:  # those that are still to come
        detokenizer.min_tokens += detokenizer.num_output_tokens()
    detokenizer.get_next_output_text(finished=False, delta=True)


def _num_incomplete(tokenizer: Any, prompt: list[int], *, skips: bool) -> int:
    """Return how many of the last tokens are the beginning of a character."""
    if tokenizer is None:
        return 0
    end = prompt[-_LONGEST_CHARACTER:]
    for num in range(min(_LONGEST_CHARACTER, len(end) + 1)):
        if not str(tokenizer.decode(end[: len(end) - num], skip_special_tokens=skips)).endswith(_INCOMPLETE):
            return num
    return 0
