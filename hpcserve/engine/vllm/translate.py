"""Requests into vLLM's words and its outputs back into ours. Decides nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from hpcserve.engine.vllm.grammar import RESUMED
from hpcserve.types import (
    EngineOutput,
    EngineRequest,
    FinishReason,
    KvHandle,
    RequestId,
    StructuredOutput,
    TokenLogprob,
    WorkerId,
)

TRANSPORT = "nixl"
COVERED = "hpcserve_covered_tokens"
"""Among the parameters of a transfer, for our connector: how many prompt tokens the handle covers."""
MOVES_AWAY = "hpcserve_moves_away"
"""Among the parameters of a transfer, for our connector: whether the KV may be forgotten once it is handed over."""
VIA = "hpcserve_transport"
"""Among the parameters of a handle: the transport that it is for, where that is not NIXL."""
MADE_IN = "hpcserve_made_in_s"
"""Among the parameters of a handle to cached KV, for our meter: the seconds that its engine took to make it."""
_FINISHED: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort", "error": "error"}
_NOT_FOR_THE_NEXT = "remote_prefill_cached_tokens"  # makes the next engine report our cache hits as its own


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """What runs with a request besides its sampling: in vLLM's own terms, as the model's parsers want it."""

    structured: Any = None  # vllm.sampling_params.StructuredOutputsParams
    spaces_between_special_tokens: bool = True
    reasoning_ended: bool | None = None  # before the first generated token; None: vLLM looks
    reasoning_parser_kwargs: dict[str, Any] | None = None


def to_structured(structured: StructuredOutput | None) -> Any:
    """Return vLLM's `StructuredOutputsParams`, or None. Raises `ValueError` for a value that is not of its kind."""
    from vllm.sampling_params import StructuredOutputsParams

    if structured is None:
        return None
    match structured.kind:
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "json_schema":
            return StructuredOutputsParams(json=structured.value)
        case "choice":
            return StructuredOutputsParams(choice=json.loads(structured.value))
        case "regex" | "grammar" | "structural_tag" as kind:
            return StructuredOutputsParams(**{kind: structured.value})


def to_sampling_params(request: EngineRequest, adjusted: Adjusted) -> Any:
    """Return vLLM's `SamplingParams`. Raises `ValueError` for values that vLLM refuses."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    sampling = request.sampling
    return SamplingParams(
        max_tokens=1 if request.prefill_only else sampling.max_tokens,
        min_tokens=0 if request.prefill_only else sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=sampling.logit_bias,
        logprobs=sampling.logprobs,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        include_stop_str_in_output=sampling.include_stop,
        ignore_eos=sampling.ignore_eos,
        skip_special_tokens=sampling.skip_special_tokens,
        spaces_between_special_tokens=adjusted.spaces_between_special_tokens,
        allowed_token_ids=None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids),
        bad_words=list(sampling.bad_words),
        structured_outputs=adjusted.structured,
        output_kind=RequestOutputKind.DELTA if request.streams or request.num_resumed else RequestOutputKind.FINAL_ONLY,
        extra_args=_extra_args(request),
    )


def to_output(request: EngineRequest, output: Any, worker: WorkerId) -> EngineOutput:
    """Return one of vLLM's `RequestOutput`s as ours; where the prompt's KV came from is added by the engine."""
    completion = output.outputs[0]
    finish_reason = completion.finish_reason and _FINISHED.get(completion.finish_reason, "stop")
    return EngineOutput(
        request_id=request.request_id,
        token_ids=tuple(completion.token_ids),
        text=completion.text,
        logprobs=_logprobs(completion, request.sampling.logprobs),
        finish_reason=finish_reason,
        stop_reason=completion.stop_reason,
        kv=_handle(request, output.kv_transfer_params, worker) if finish_reason else None,
        error="vLLM failed on this request; its log says why" if finish_reason == "error" else None,
    )


def to_embedding(request: EngineRequest, output: Any, *, cached_tokens: int) -> EngineOutput:
    """Return vLLM's `PoolingRequestOutput` as ours; one that was aborted holds nothing."""
    data = output.outputs.data
    if not data.numel():
        return EngineOutput(request_id=request.request_id, finish_reason="abort")
    return EngineOutput(
        request_id=request.request_id,
        finish_reason="stop",
        cached_tokens=cached_tokens,
        embedding=data.float().cpu().numpy().astype("<f4").tobytes(),
    )


def failed(request_id: RequestId, why: str) -> EngineOutput:
    """Return the last output of a request that the engine failed on."""
    return EngineOutput(request_id=request_id, finish_reason="error", error=why)


def refused(request: EngineRequest, why: str) -> EngineOutput:
    """Return the one output of a request that cannot run: the client's fault, unless it ran elsewhere already."""
    is_refusal = not request.num_resumed
    return EngineOutput(request_id=request.request_id, finish_reason="error", error=why, is_refusal=is_refusal)


def say_made_in(output: EngineOutput, seconds: float) -> EngineOutput:
    """Return the last output of a prefill with the time that it took in its handle, for whoever pulls."""
    if output.kv is None:
        return output
    handle = msgspec.structs.replace(output.kv, params=output.kv.params | {MADE_IN: seconds})
    return msgspec.structs.replace(output, kv=handle)


def _extra_args(request: EngineRequest) -> dict[str, Any] | None:
    extra = _kv_transfer_params(request)
    if request.num_resumed and not request.prefill_only:
        extra[RESUMED] = request.num_resumed
    return extra or None


def _kv_transfer_params(request: EngineRequest) -> dict[str, Any]:
    params: dict[str, Any] = {}
    if request.kv is not None:
        params |= request.kv.params | {COVERED: request.kv.num_tokens}
    if request.prefill_only:
        params |= {"do_remote_decode": True} | ({MOVES_AWAY: True} if request.moves_away else {})
    return {"kv_transfer_params": params} if params else {}


def _handle(request: EngineRequest, params: dict[str, Any] | None, worker: WorkerId) -> KvHandle | None:
    if not request.prefill_only or not params:
        return None
    kept = {key: value for key, value in params.items() if key != _NOT_FOR_THE_NEXT}
    transport = kept.pop(VIA, TRANSPORT)
    return KvHandle(transport=transport, source=worker, num_tokens=len(request.token_ids), params=kept)


def _logprobs(completion: Any, num_top: int | None) -> tuple[TokenLogprob, ...]:
    if num_top is None or not completion.logprobs:
        return ()
    return tuple(
        _token_logprob(token_id, at_position, num_top)
        for token_id, at_position in zip(completion.token_ids, completion.logprobs, strict=False)
    )


def _token_logprob(token_id: int, at_position: dict[int, Any], num_top: int) -> TokenLogprob:
    sampled = at_position[token_id]
    ranked = sorted(at_position.items(), key=lambda item: cast("int", item[1].rank))[:num_top]
    top = tuple((other, entry.decoded_token or "", entry.logprob) for other, entry in ranked)
    return TokenLogprob(token_id, sampled.decoded_token or "", sampled.logprob, top)
