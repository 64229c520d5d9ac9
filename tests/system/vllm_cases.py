"""The requests that hpcserve and vLLM's own server have to answer alike. Text means nothing: the model is random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS = "chat/completions", "completions"
HI = [{"role": "user", "content": "import asyncio and say"}]
UNIT = {
    "type": "object",
    "properties": {"unit": {"type": "string", "enum": ["c", "f"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Ask for it", "parameters": UNIT}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "unit", "schema": UNIT, "strict": True}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"unit": "c"}'}}
CALLED = [
    *HI,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call-1", "content": [{"type": "text", "text": "21 degrees"}]},
]
USAGE = {"stream_options": {"include_usage": True}}
RUNNING_USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@dataclass(frozen=True)
class Case:
    """One request; `stream` is part of its body."""

    name: str
    path: str
    body: dict[str, Any]


def chat(name: str, **fields: Any) -> list[Case]:
    """Return a chat in one piece and streamed; `stream_options` count for the stream only."""
    return both(name, CHAT, {"messages": HI, "max_tokens": 8, "temperature": 0, **fields})


def completion(name: str, **fields: Any) -> list[Case]:
    return both(name, COMPLETIONS, {"prompt": "import os", "max_tokens": 8, "temperature": 0, **fields})


def both(name: str, path: str, body: dict[str, Any]) -> list[Case]:
    body = {"model": "tiny", **{key: value for key, value in body.items() if value is not ...}}
    whole = {key: value for key, value in body.items() if key != "stream_options"}
    return [Case(f"{path}: {name}", path, whole), Case(f"{path}: {name}, streamed", path, body | {"stream": True})]


def error(name: str, path: str, **fields: Any) -> list[Case]:
    needed: dict[str, Any] = {"messages": HI} if path == CHAT else {"prompt": "import os"}
    body = {"model": "tiny", "max_tokens": 4, **needed, **fields}
    return [Case(f"{path}: refused: {name}", path, {key: value for key, value in body.items() if value is not ...})]


CHATS = [
    *chat("plain", **USAGE),
    *chat("with a system", messages=[{"role": "system", "content": "be brief"}, *HI], **RUNNING_USAGE),
    *chat("from a developer", messages=[{"role": "developer", "content": "be brief"}, *HI]),
    *chat("text parts", messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]),
    *chat("after a tool call", messages=CALLED, tools=TOOLS, tool_choice="none"),
    *chat("two choices", n=2, temperature=0.8, seed=7, **USAGE),
    *chat("logprobs", logprobs=True, top_logprobs=3),
    *chat("logprobs of the sampled tokens", logprobs=True),
    *chat("logprobs by id", logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True),
    *chat("token ids", return_token_ids=True),
    *chat("stop string", stop=["e"], max_tokens=40),
    *chat("stop string kept", stop=["e"], include_stop_str_in_output=True, max_tokens=40),
    *chat("stop token", allowed_token_ids=[70], stop_token_ids=[70]),
    *chat("penalties", frequency_penalty=1.0, presence_penalty=0.5, repetition_penalty=1.2, logit_bias={"300": 5}),
    *chat("sampled", temperature=0.7, seed=3, top_k=20, top_p=0.9, min_p=0.01),
    *chat("no end", ignore_eos=True, min_tokens=8, max_tokens=..., max_completion_tokens=8),
    *chat("bad words", bad_words=[" the"], skip_special_tokens=False),
    *chat("truncated", truncate_prompt_tokens=5, return_token_ids=True),
    *chat("continued", messages=[*HI, {"role": "assistant", "content": "Well "}],
          add_generation_prompt=False, continue_final_message=True, return_token_ids=True),
    *chat("JSON by schema", response_format=JSON_SCHEMA, max_tokens=30),
    *chat("any JSON", response_format={"type": "json_object"}, max_tokens=20),
    *chat("choice", structured_outputs={"choice": ["yes", "no"]}),
    *chat("regex", structured_outputs={"regex": "[ab]{3}"}),
]  # fmt: skip
TOOL_CHATS = [
    *chat("a tool must be called", tools=TOOLS, tool_choice="required", max_tokens=60),
    *chat("one tool must be called", tools=TOOLS, tool_choice=NAMED, max_tokens=60),
    *chat("tools may be called", tools=TOOLS, **USAGE),
    *chat("no tool may be called", tools=TOOLS, tool_choice="none"),
    *chat("one call at most", tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=60),
    *chat("a forced call by regex", tools=TOOLS, max_tokens=60, structured_outputs={
        "regex": '<tool_call>\\{"name": "weather", "arguments": \\{"unit": "[cf]"\\}\\}</tool_call>'
    }),
]  # fmt: skip
COMPLETION_CASES = [
    *completion("a text", **USAGE),
    *completion("texts", prompt=["import", "def f"], **RUNNING_USAGE),
    *completion("token ids", prompt=[5, 300, 301, 302]),
    *completion("lists of token ids", prompt=[[5, 300], [301, 302, 303]]),
    *completion("choices", n=2, temperature=0.8, seed=7, prompt=["import", "def f"]),
    *completion("logprobs", logprobs=2),
    *completion("logprobs by id", logprobs=1, return_tokens_as_token_ids=True),
    *completion("echo", echo=True),
    *completion("ids of prompt and text", return_token_ids=True),
    *completion("echo with ids", echo=True, return_token_ids=True),
    *completion("stop", stop="e", max_tokens=40),
    *completion("default length", max_tokens=...),
    *completion("JSON by schema", response_format=JSON_SCHEMA, max_tokens=30),
    *completion("regex", structured_outputs={"regex": "[ab]{3}"}),
    *completion("truncated", truncate_prompt_tokens=2, prompt="import os, sys, json, re", return_token_ids=True),
    *completion("without special tokens", add_special_tokens=False, return_token_ids=True),
]
ERRORS = [
    *error("another model", CHAT, model="other"),
    *error("another model", COMPLETIONS, model="other"),
    *error("no messages", CHAT, messages=[]),
    *error("messages missing", CHAT, messages=...),
    *error("prompt missing", COMPLETIONS, prompt=...),
    *error("negative temperature", CHAT, temperature=-1),
    *error("over the context", CHAT, max_tokens=100_000),
    *error("prompt over the context", COMPLETIONS, prompt=[300] * 9000),
    *error("no tools", CHAT, tools=[]),
    *error("choice without tools", CHAT, tool_choice="required"),
    *error("choice of an unknown tool", CHAT, tools=TOOLS, tool_choice={"function": {"name": "x"}, "type": "function"}),
    *error("format without its schema", CHAT, response_format={"type": "json_schema"}),
    *error("broken regex", CHAT, structured_outputs={"regex": "("}),
    *error("two structures", CHAT, structured_outputs={"regex": "a", "choice": ["b"]}),
    *error("alternatives without logprobs", CHAT, top_logprobs=2),
    *error("options without a stream", CHAT, stream_options={"include_usage": True}),
    *error("a number as text", CHAT, max_tokens="many"),
    *error("top_p of 0", COMPLETIONS, top_p=0),
    *error("unknown token", COMPLETIONS, prompt=[10**6]),
    *error("suffix", COMPLETIONS, suffix="x"),
    *error("template of the request's own", CHAT, chat_template="{{ 1 }}"),
    *error("allowed tokens that do not exist", CHAT, allowed_token_ids=[10**6]),
]
OTHERWISE_ANSWERED = [
    *error("prompt and output over the context", COMPLETIONS, prompt=[300] * 8000, max_tokens=400),
    *error("greedy choices", CHAT, n=2, temperature=0),
    *error("unknown field", CHAT, temprature=1),
    *error("echo with logprobs", COMPLETIONS, echo=True, logprobs=1),
    *error("logprobs of the prompt", CHAT, prompt_logprobs=1),
    *error("removed fields", CHAT, guided_regex="a"),
]
CASES = [*CHATS, *TOOL_CHATS, *COMPLETION_CASES, *ERRORS, *OTHERWISE_ANSWERED]

THINKING = {"chat_template_kwargs": {"thinking": True}, "max_tokens": 24}
REASONING_CASES = [
    *chat("content only", **USAGE),
    *chat("thinks on and on", **THINKING, **USAGE),
    *chat("stops thinking", **THINKING, **RUNNING_USAGE, logit_bias={"2045": 3}),
    *chat("hides what it thinks", **THINKING, include_reasoning=False, logprobs=True, return_token_ids=True),
    *chat("answers in JSON", max_tokens=30, response_format=JSON_SCHEMA),
    *chat("thinks with effort", **THINKING, reasoning_effort="low", logprobs=True),
]
