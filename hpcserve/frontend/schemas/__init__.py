"""The request bodies that people write: OpenAI's fields, plus vLLM's extras. Everything that is not here is refused."""

from hpcserve.frontend.schemas.body import MAX_CHOICES, MAX_LOGPROBS, Body, NonEmptyText, SessionId, TokenId, session_id
from hpcserve.frontend.schemas.chat import ChatBody
from hpcserve.frontend.schemas.completion import CompletionBody
from hpcserve.frontend.schemas.generation import GenerationBody, StreamOptions
from hpcserve.frontend.schemas.messages import ChatMessage, TextPart, ToolCall, ToolCallFunction
from hpcserve.frontend.schemas.structure import JsonSchema, ResponseFormat, StructuredOutputs
from hpcserve.frontend.schemas.tokenizing import DetokenizeBody, TokenizeBody, TokenizeChatBody, TokenizeTextBody
from hpcserve.frontend.schemas.tools import FunctionDefinition, FunctionName, NamedTool, Tool, ToolChoice

__all__ = [
    "MAX_CHOICES",
    "MAX_LOGPROBS",
    "Body",
    "ChatBody",
    "ChatMessage",
    "CompletionBody",
    "DetokenizeBody",
    "FunctionDefinition",
    "FunctionName",
    "GenerationBody",
    "JsonSchema",
    "NamedTool",
    "NonEmptyText",
    "ResponseFormat",
    "SessionId",
    "StreamOptions",
    "StructuredOutputs",
    "TextPart",
    "TokenId",
    "TokenizeBody",
    "TokenizeChatBody",
    "TokenizeTextBody",
    "Tool",
    "ToolCall",
    "ToolCallFunction",
    "ToolChoice",
    "session_id",
]
