"""What is asked of an engine for one sequence, and what it answers step by step."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from hpcserve.types.ids import FinishReason, RequestId, WorkerId


class StructuredOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What the generated text has to look like. `value` is JSON text but for a regex and a grammar."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar", "structural_tag"]
    value: str = ""  # the schema, the pattern, the list of choices, the grammar, the tag; json_object: nothing


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Sampling parameters of one sequence. Meanings and ranges are those of vLLM's `SamplingParams`."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None  # alternatives per token; 0: only the sampled token's
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False  # keep the stop string in the text
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    allowed_token_ids: tuple[int, ...] | None = None  # no others are sampled
    bad_words: tuple[str, ...] = ()  # never generated
    structured: StructuredOutput | None = None


class KvHandle(msgspec.Struct, frozen=True, kw_only=True):
    """Where the KV blocks of a prompt can be fetched, once. Only the engines look inside `params`."""

    transport: str  # "nixl", "mpi", "mock"
    source: WorkerId
    num_tokens: int  # prompt tokens that the handle covers
    params: dict[str, Any]


class ChatParsing(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How the generated text of a chat is taken apart into reasoning, content and tool calls, by the model's parsers.

    The fields are those of OpenAI's chat completion request. `tool_choice` constrains what is generated, too.
    """

    streams: bool  # parse every delta; else the whole text once, with the last output
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | dict[str, Any] = "none"  # "none", "auto", "required", or a named function
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    template_kwargs: dict[str, Any] = {}  # what the chat template was rendered with; some parsers depend on it
    num_earlier_tool_calls: int = 0  # in the conversation so far; some families number the ids


class EngineRequest(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One sequence for one engine. The engine returns what follows `token_ids`."""

    request_id: RequestId
    token_ids: list[int]
    sampling: Sampling
    prefill_only: bool = False  # compute the prompt and one token; the last output carries a KvHandle
    kv: KvHandle | None = None  # pull the prompt's KV from there instead of computing it
    priority: int = 0  # lower runs first
    cache_salt: str | None = None  # prefixes are shared within one salt only
    num_resumed: int = 0  # how many of the last `token_ids` an earlier worker had generated
    reused_tokens: int = 0  # leading tokens that were asked for before: their blocks are worth keeping for longer
    moves_away: bool = False  # another worker takes its KV over for good: the blocks here may be evicted first
    parsing: ChatParsing | None = None  # outputs carry `parsed`; only engines that can "tools" or "reasoning"
    embeds: bool = False  # the prompt's embedding is wanted and nothing generated; only engines that can "embed"
    streams: bool = True  # outputs come as they are made; else engines that can give one, at the end, for less
    traceparent: str | None = None  # W3C trace context: the span that spans of this request belong under


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log probability of one token, and of the most likely alternatives at its position."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()  # (token id, token, logprob), most likely first


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A piece of one tool call. Id and name come with its first piece; the arguments are JSON text in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str | None = None


class ParsedDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the model's parsers made of a delta, or of the whole text where nothing is streamed. None: no such part."""

    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning_tokens: int | None = None  # of all generated so far; on the last output, where a reasoning parser counts


class EngineOutput(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one engine step added to one request. The last one has a `finish_reason`."""

    request_id: RequestId
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id, when asked for
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token or string that ended it
    cached_tokens: int | None = None  # prompt tokens found in this engine's cache; on the first output
    pulled_tokens: int = 0  # prompt tokens fetched through `EngineRequest.kv`; on the first output
    pull_s: float | None = None  # how long that took, waiting included; on the first output, where the engine knows
    kv: KvHandle | None = None  # with prefill_only, on the last output; with `leaves`, to prompt and tokens so far
    leaves: bool = False  # with finish_reason "abort": the worker leaves, and the request goes on elsewhere
    error: str | None = None  # with finish_reason "error"
    is_refusal: bool = False  # with `error`: the request makes no sense to the engine; no other would take it either
    parsed: ParsedDelta | None = None  # with `EngineRequest.parsing`; None where this delta gave nothing to show yet
    embedding: bytes | None = None  # with `EngineRequest.embeds`, on the only output: float32, little-endian
