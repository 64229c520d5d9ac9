"""The body of /v1/responses: OpenAI's fields, and the extras of vLLM's server."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from hpcserve.frontend.responses.items import Items
from hpcserve.frontend.schemas import (
    MAX_LOGPROBS,
    Body,
    FunctionDefinition,
    JsonSchema,
    NonEmptyText,
    ResponseFormat,
    SessionId,
    StructuredOutputs,
    TokenId,
    Tool,
)
from hpcserve.frontend.schemas.body import INT32_MAX, INT64_MAX, one_or_more
from hpcserve.frontend.schemas.chat import ReasoningEffort

LOGPROBS = "message.output_text.logprobs"
# All but the first ask for what comes with tools, images or encryption that there are none of: nothing is left out.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]

# Fields that are known but not served, each with the values that ask for nothing; `...` is any value.
RESPONSES: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "background_options": (),
    "conversation": (),
    "previous_response_id": (),
    "store": (False,),
    "prompt": (),
    "max_tool_calls": (...,),  # of built-in tools, which there are none of
    "moderation": (),
    "context_management": ([],),
    "access_programs": (),
    "image": (),
    "safety_identifier": (...,),
    "prompt_cache_retention": (...,),
    "prompt_cache_options": (...,),
    "request_id": (),
    "previous_input_messages": (),
    "enable_response_messages": (False,),
    "mm_payload": (...,),
    "return_mm_kwargs": (...,),
    "media_io_kwargs": (),
    "mm_processor_kwargs": (),
    "vllm_xargs": (),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
    "watermarking": (False,),
}


class FunctionTool(Body):
    """A function that the client runs."""

    type: Literal["function"]
    name: NonEmptyText
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Literal[False] = False
    allowed_callers: list[Literal["direct"]] = Field(default_factory=list)

    def for_chat(self) -> Tool:
        """Return it as a chat has it."""
        function = FunctionDefinition(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(function=function)


def _functions(tools: Any) -> Any:
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and tool.get("type") != "function":
            kind = str(tool.get("type"))[:40]
            raise ValueError(f"has a tool of type {kind!r}, which is not supported; only 'function' is")
    return tools


class FunctionChoice(Body):
    """The one function that the model has to call."""

    type: Literal["function"]
    name: NonEmptyText


def _choice(value: Any) -> Any:
    if isinstance(value, FunctionChoice) or value in ("none", "auto", "required"):
        return value
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(value.get("name"), str):
        raise ValueError(
            'must be \'none\', \'auto\', \'required\' or an object such as {"type": "function", "name": "my_function"}'
        )
    return FunctionChoice.model_validate(value)


_Choice = Literal["none", "auto", "required"]


class TextFormat(Body):
    """What the text has to look like."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"]
    name: NonEmptyText | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")  # "schema" is a method of pydantic's models
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.type == "json_schema":
            for name, value in (("name", self.name), ("schema", self.json_schema)):
                if value is None:
                    raise ValueError(f"of type 'json_schema' needs {name}")
        elif self.name is not None or self.json_schema is not None:
            raise ValueError(f"of type {self.type!r} takes no name and no schema")
        return self

    def for_chat(self) -> ResponseFormat:
        """Return it as a chat has it."""
        if self.name is None or self.json_schema is None:
            return ResponseFormat(type=self.type)
        schema = JsonSchema(
            name=self.name, description=self.description, json_schema=self.json_schema, strict=self.strict
        )
        return ResponseFormat(type=self.type, json_schema=schema)


class TextOptions(Body):
    """How the text looks."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None  # OpenAI's default; no template knows it


class Reasoning(Body):
    """How much the model thinks. Its thoughts are given in full: no summary is made of them."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None  # what `summary` was called earlier
    context: Literal["auto", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class ResponseStreamOptions(Body):
    """Of a stream."""

    include_obfuscation: Literal[False] = False


class ResponsesBody(Body):
    """The body of /v1/responses. None: the model's default, else OpenAI's."""

    model: NonEmptyText
    input: Items
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    include: list[Includable] = Field(default_factory=list)
    tools: Annotated[list[FunctionTool], BeforeValidator(_functions, json_schema_input_type=list[FunctionTool])] = (
        Field(default_factory=list)
    )
    tool_choice: (
        Annotated[_Choice | FunctionChoice, BeforeValidator(_choice, json_schema_input_type=_Choice | FunctionChoice)]
        | None
    ) = None
    parallel_tool_calls: bool = True
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "default"] = "auto"
    prompt_cache_key: SessionId | None = None

    include_reasoning: bool = True
    structured_outputs: StructuredOutputs | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-INT64_MAX, le=INT64_MAX)
    stop: Annotated[
        list[NonEmptyText], BeforeValidator(one_or_more, json_schema_input_type=NonEmptyText | list[NonEmptyText])
    ] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    session_id: SessionId | None = None
    priority: int | None = Field(None, ge=-INT32_MAX, le=INT32_MAX)
    cache_salt: NonEmptyText | None = None

    @property
    def gives_logprobs(self) -> bool:
        """Whether the response tells how likely its tokens were."""
        return LOGPROBS in self.include
