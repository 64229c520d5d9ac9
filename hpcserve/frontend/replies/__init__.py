"""The bodies that the frontend answers with, in vLLM's order of fields; the description of the API is made from these.

Chunks of streams are written by hand, because they are made for every token; a test holds them against what is here.
"""

from hpcserve.frontend.replies.body import (
    SYSTEM_FINGERPRINT,
    CompletionTokensDetails,
    ErrorDetail,
    ErrorReply,
    PromptTokensDetails,
    Reply,
    Usage,
    whole_usage,
)
from hpcserve.frontend.replies.chat import (
    AlternativeToken,
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatReplyMessage,
    ChosenToken,
    FunctionDelta,
    ToolCallReply,
    ToolCallReplyDelta,
)
from hpcserve.frontend.replies.completion import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
)
from hpcserve.frontend.replies.service import Alive, Detokenized, Healthy, Model, ModelList, Tokenized

__all__ = [
    "SYSTEM_FINGERPRINT",
    "Alive",
    "AlternativeToken",
    "CalledFunction",
    "ChatChoice",
    "ChatChunkChoice",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatDelta",
    "ChatLogprobs",
    "ChatReplyMessage",
    "ChosenToken",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkChoice",
    "CompletionLogprobs",
    "CompletionTokensDetails",
    "Detokenized",
    "ErrorDetail",
    "ErrorReply",
    "FunctionDelta",
    "Healthy",
    "Model",
    "ModelList",
    "PromptTokensDetails",
    "Reply",
    "Tokenized",
    "ToolCallReply",
    "ToolCallReplyDelta",
    "Usage",
    "whole_usage",
]
