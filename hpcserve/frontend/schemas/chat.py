"""The body of /v1/chat/completions; other APIs for conversations are turned into it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hpcserve.frontend.schemas.body import MAX_LOGPROBS
from hpcserve.frontend.schemas.generation import GenerationBody
from hpcserve.frontend.schemas.messages import ChatMessage
from hpcserve.frontend.schemas.tools import NamedTool, Tool, ToolChoice

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatBody(GenerationBody):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)

    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    tool_choice: ToolChoice | None = None  # None: "auto" with tools, else "none"
    parallel_tool_calls: bool = True
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool = True

    add_generation_prompt: bool | None = None  # None: true, but where the last message is to be continued
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: list[dict[str, str]] | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    def choice_of_tools(self) -> str | dict[str, Any]:
        """Return "none", "auto", "required", or OpenAI's object that names a function."""
        if isinstance(self.tool_choice, NamedTool):
            return self.tool_choice.model_dump()
        return self.tool_choice or ("auto" if self.tools else "none")
