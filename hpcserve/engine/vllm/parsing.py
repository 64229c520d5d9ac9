"""What a chat's output means, delta by delta, told by vLLM's parsers. One object a request.

The parsers have a say before anything is generated, too: forced tool calls become a structured output, and marks that
the parsers look for must not be skipped as special tokens. Which parsers there are is settled in `parsers`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec

from hpcserve.engine.vllm.parsers import Parsers
from hpcserve.engine.vllm.translate import Adjusted, to_sampling_params, to_structured
from hpcserve.types import ChatParsing, EngineOutput, EngineRequest, ParsedDelta, Sampling, ToolCallDelta

logger = logging.getLogger(__name__)


class ChatParser:
    """Parses the outputs of one request, in order. `request` and `adjusted` say how it has to be run."""

    def __init__(self, parsers: Parsers, request: EngineRequest, parsing: ChatParsing) -> None:
        """Raises `ValueError` for a chat that the parsers refuse."""
        num_prompt = len(request.token_ids) - request.num_resumed
        self._prompt, resumed = request.token_ids[:num_prompt], request.token_ids[num_prompt:]
        self._parsing = parsing
        self._has_reasoning = parsers.kind.reasoning_parser_cls is not None
        self._has_tools = parsers.kind.tool_parser_cls is not None
        self._chat = _adjust(parsers, _to_chat_request(parsing, request.sampling), parsing)
        self._parser = parsers.make(self._chat, parsing.template_kwargs)
        self._token_ids: list[int] = []
        self._texts: list[str] = []
        self.request = _keep_special_tokens(request, skip=self._chat.skip_special_tokens)
        self.adjusted = self._read_adjustments()
        with _failing_alone():
            self._parser.set_prompt_token_ids(self._prompt)
            for output in _replay(parsers.tokenizer, self.request, self._prompt, resumed, self.adjusted):
                self._read(output)

    def add(self, output: EngineOutput) -> EngineOutput:
        """Return the output with what it means. Raises `ValueError` where a parser fails on what the model wrote."""
        with _failing_alone():
            parsed = self._read(output)
        return output if parsed is None else msgspec.structs.replace(output, parsed=parsed)

    def _read(self, output: EngineOutput) -> ParsedDelta | None:
        is_last = output.finish_reason in ("stop", "length")
        self._token_ids.extend(output.token_ids)
        if self._parsing.streams:
            parsed = self._parse_delta(output, is_last=is_last)
        else:
            self._texts.append(output.text)
            parsed = self._parse_whole() if is_last else None
        if is_last and self._has_reasoning:
            num_reasoning = self._parser.count_reasoning_tokens(tuple(self._token_ids))
            parsed = msgspec.structs.replace(parsed or ParsedDelta(), reasoning_tokens=num_reasoning)
        return parsed

    def _parse_delta(self, output: EngineOutput, *, is_last: bool) -> ParsedDelta | None:
        if not output.text and not output.token_ids and not is_last:
            return None
        message = self._parser.parse_delta(
            output.text, list(output.token_ids), self._chat, prompt_token_ids=self._prompt, finished=is_last
        )
        if message is None:
            return None
        calls = tuple(_to_call_delta(call) for call in message.tool_calls or () if self._is_wanted(call.index))
        parsed = ParsedDelta(content=message.content, reasoning=message.reasoning, tool_calls=calls)
        return None if parsed == ParsedDelta() else parsed

    def _parse_whole(self) -> ParsedDelta:
        reasoning, content, calls = self._parser.parse(
            "".join(self._texts),
            self._chat,
            enable_auto_tools=self._has_tools,
            model_output_token_ids=self._token_ids,
        )
        choice = self._chat.tool_choice
        if not self._has_tools or choice in (None, "none"):
            calls = None
        elif choice != "auto":
            content = content or ""  # as vLLM's own server has it
        wanted = [call for index, call in enumerate(calls or ()) if self._is_wanted(index)]
        return ParsedDelta(
            content=content,
            reasoning=reasoning if self._parsing.include_reasoning else None,
            tool_calls=tuple(_to_call(index, call) for index, call in enumerate(wanted)),
        )

    def _is_wanted(self, index: int) -> bool:
        return index == 0 or self._parsing.parallel_tool_calls

    def _read_adjustments(self) -> Adjusted:
        chat = self._chat
        kwargs = {"chat_template_kwargs": self._parsing.template_kwargs} if self._parser.reasoning_parser else None
        return Adjusted(
            structured=chat.extract_structured_outputs(),
            spaces_between_special_tokens=chat.spaces_between_special_tokens,
            reasoning_ended=chat.resolve_reasoning_ended(self._parser, self._prompt),
            reasoning_parser_kwargs=kwargs,
        )


def _to_chat_request(parsing: ChatParsing, sampling: Sampling) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    call = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    earlier = [call] * parsing.num_earlier_tool_calls  # only their number counts
    terms: dict[str, Any] = {"tool_choice": parsing.tool_choice, "tools": list(parsing.tools)} if parsing.tools else {}
    return ChatCompletionRequest(
        messages=[{"role": "assistant", "tool_calls": earlier}] if earlier else [],
        stream=parsing.streams,
        parallel_tool_calls=parsing.parallel_tool_calls,
        include_reasoning=parsing.include_reasoning,
        chat_template_kwargs=parsing.template_kwargs,
        structured_outputs=to_structured(sampling.structured),
        skip_special_tokens=sampling.skip_special_tokens,
        **terms,
    )


def _adjust(parsers: Parsers, chat: Any, parsing: ChatParsing) -> Any:
    """Let the parsers change the request, where vLLM's own server would."""
    from vllm.utils.mistral import is_mistral_tokenizer, is_mistral_tool_parser

    kind = parsers.kind
    is_adjusted = (
        kind.always_adjust_request
        or kind.reasoning_parser_cls is not None
        or chat.tool_choice != "none"
        or (is_mistral_tool_parser(kind.tool_parser_cls) and is_mistral_tokenizer(parsers.tokenizer))
    )
    if not is_adjusted:
        return chat
    with _failing_alone():
        return parsers.make(chat, parsing.template_kwargs).adjust_request(request=chat)


def _keep_special_tokens(request: EngineRequest, *, skip: bool) -> EngineRequest:
    return msgspec.structs.replace(
        request, sampling=msgspec.structs.replace(request.sampling, skip_special_tokens=skip)
    )


def _replay(
    tokenizer: Any, request: EngineRequest, prompt: list[int], resumed: list[int], adjusted: Adjusted
) -> Iterator[EngineOutput]:
    """Yield what the earlier worker gave out for `resumed`, one token at a time."""
    if not resumed:
        return
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    first = msgspec.structs.replace(request, token_ids=prompt, num_resumed=0)
    params = to_sampling_params(first, adjusted)
    detokenizer = IncrementalDetokenizer.from_new_request(
        tokenizer,
        SimpleNamespace(request_id=None, sampling_params=params, prompt_token_ids=prompt, prompt_embeds=None),
    )
    for token_id in resumed:
        detokenizer.update([token_id], stop_terminated=False)
        text = detokenizer.get_next_output_text(finished=False, delta=True)
        yield EngineOutput(request_id=request.request_id, token_ids=(token_id,), text=text)


@contextmanager
def _failing_alone() -> Iterator[None]:
    """Turn whatever a parser raises into a `ValueError`, which ends this one request, as vLLM's own do."""
    from vllm.exceptions import VLLMClientError

    try:
        yield
    except (ValueError, VLLMClientError):
        raise
    except Exception as err:  # parsers are many, and read what a model made up
        logger.exception("a parser failed")
        raise ValueError(f"the model's parser failed on the output: {type(err).__name__}: {err}") from err


def _to_call_delta(call: Any) -> ToolCallDelta:
    function = call.function
    return ToolCallDelta(
        index=call.index,
        id=call.id,
        name=function.name if function else None,
        arguments=function.arguments if function else None,
    )


def _to_call(index: int, call: Any) -> ToolCallDelta:
    from vllm.renderers.chat_utils import make_tool_call_id

    return ToolCallDelta(index=index, id=call.id or make_tool_call_id(), name=call.name, arguments=call.arguments)
