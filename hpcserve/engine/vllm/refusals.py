"""Why an engine cannot do what a request asks for. Decides nothing else, and knows no vLLM."""

from __future__ import annotations

from hpcserve.types import EngineInfo, EngineRequest


def why_refused(request: EngineRequest, info: EngineInfo, *, resumes_grammars: bool) -> str | None:
    """Return what to tell the client; None if the engine can run the request."""
    if why := _lacks_ability(request, info):
        return why
    num_tokens, room = len(request.token_ids), info.max_model_len
    if not num_tokens:
        return "the prompt is empty"
    if num_tokens > room or (num_tokens == room and not request.embeds):
        return f"the prompt has {num_tokens} tokens, the model's context {room}; shorten the prompt"
    if request.prefill_only and info.kv_transport is None:
        return "this engine cannot hand over KV: it was started without KV transfer"
    if request.sampling.structured is not None and request.num_resumed and not resumes_grammars:
        return "the worker was lost, and this vLLM cannot resume a structured output; send the request again"
    return None


def _lacks_ability(request: EngineRequest, info: EngineInfo) -> str | None:
    if request.embeds and "embed" not in info.can:
        return f"{info.model} generates and cannot embed; embeddings need engine.vllm.args with runner: pooling"
    if not request.embeds and "generate" not in info.can:
        return f"{info.model} embeds and cannot generate"
    if request.sampling.structured is not None and "structured_output" not in info.can:
        return f"{info.model} runs on an engine without structured output"
    parsing = request.parsing
    if parsing is None:
        return None
    if parsing.tools and parsing.tool_choice != "none" and "tools" not in info.can:
        return f"no parser reads the tool calls of {info.model}; name one with model.tool_parser"
    if "tools" not in info.can and "reasoning" not in info.can:
        return f"no parser reads the output of {info.model}; model.tool_parser and model.reasoning_parser name them"
    return None
