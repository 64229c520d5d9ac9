"""The bodies of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from hpcserve.frontend.schemas.body import Body, NonEmptyText, TokenId
from hpcserve.frontend.schemas.messages import ChatMessage
from hpcserve.frontend.schemas.tools import Tool


class TokenizeBody(Body):
    """What the two forms of /tokenize have in common."""

    model: NonEmptyText | None = None
    return_token_strs: bool = False


class TokenizeTextBody(TokenizeBody):
    """The body of /tokenize for a plain prompt."""

    prompt: str
    add_special_tokens: bool = True


class TokenizeChatBody(TokenizeBody):
    """The body of /tokenize for a conversation."""

    messages: list[ChatMessage] = Field(min_length=1)
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class DetokenizeBody(Body):
    """The body of /detokenize."""

    model: NonEmptyText | None = None
    tokens: list[TokenId]
