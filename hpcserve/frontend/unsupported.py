"""Fields of OpenAI's and vLLM's APIs that are known but not served: fine where they change nothing, refused otherwise.

A field that is silently ignored gives an answer to another question than the one that was asked.
"""

from __future__ import annotations

from typing import Any

from hpcserve.errors import Unsupported

# Each field with the values that ask for nothing. `...` stands for any value: a hint that may be ignored.
_GENERATION: dict[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "default"),
    "safety_identifier": (...,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "spaces_between_special_tokens": (True,),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "vllm_xargs": (),
    "repetition_detection": (),
    "routed_experts_prompt_start": (0,),
    "stream_interval": (1,),
    "thinking_token_budget": (),
    "watermarking": (False,),
    "request_id": (),
    "return_prompt_text": (False,),
    "return_token_offsets": (False,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}
CHAT: dict[str, tuple[Any, ...]] = _GENERATION | {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "store": (False,),
    "no_stop_trim": (False,),  # this and the next three are SGLang's; vllm-router puts them into whatever it passes on
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "return_hidden_states": (False,),
    "web_search_options": (),
    "moderation": (),
    "prompt_cache_retention": (...,),
    "echo": (False,),
    "chat_template": (),
    "mm_processor_kwargs": (),
    "media_io_kwargs": (),
}
COMPLETION: dict[str, tuple[Any, ...]] = _GENERATION | {
    "suffix": ("",),
    "prompt_embeds": (),
}
TOKENIZE_CHAT: dict[str, tuple[Any, ...]] = {
    name: CHAT[name] for name in ("chat_template", "mm_processor_kwargs", "media_io_kwargs")
}
MESSAGE: dict[str, tuple[Any, ...]] = {
    "function_call": (),
    "audio": (),
    "refusal": (),
    "annotations": ([],),
    "parsed": (...,),  # what OpenAI's client made of the content
}


def strip_unsupported(body: dict[str, Any], known: dict[str, tuple[Any, ...]], where: str = "") -> dict[str, Any]:
    """Return `body` without the known fields that ask for nothing, and without nulls.

    Raises `Unsupported` naming the first field that asks for something which is not served.
    """
    kept = {}
    for name, value in body.items():
        if value is None:
            continue
        harmless = known.get(name)
        if harmless is None:
            kept[name] = value
        elif ... not in harmless and not _is_one_of(value, harmless):
            raise _refusal(where + name, value, harmless)
    return kept


def _is_one_of(value: Any, harmless: tuple[Any, ...]) -> bool:
    # 1 == True, but they are different JSON.
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless)


def _refusal(param: str, value: Any, harmless: tuple[Any, ...]) -> Unsupported:
    allowed = " or ".join(repr(each) for each in harmless)
    advice = "use structured_outputs" if param.startswith("guided_") else ""
    advice = advice or (f"only {allowed} is accepted" if allowed else "leave it out")
    return Unsupported(f"{param} = {_shown(value)} is not supported; {advice}", param=param)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
