"""The body of /v1/embeddings: OpenAI's fields, and a few of vLLM's extras."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hpcserve.frontend.schemas.body import INT32_MAX, INT64_MAX, Body, NonEmptyText, SessionId
from hpcserve.frontend.schemas.completion import Prompts

# Fields that are known but not served, each with the values that ask for nothing; `...` is any value.
EMBEDDINGS: dict[str, tuple[Any, ...]] = {
    "dimensions": (),
    "messages": (),
    "padding": ("do_not_pad",),
    "request_id": (),
    "use_activation": (),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "mm_processor_kwargs": (),
    "safety_identifier": (...,),
}


class EmbeddingsBody(Body):
    """The body of /v1/embeddings."""

    model: NonEmptyText
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(None, ge=-1, le=INT64_MAX)  # -1: to the context
    truncation_side: Literal["left", "right"] = "right"  # what is cut off
    prompt_cache_key: SessionId | None = None
    priority: int | None = Field(None, ge=-INT32_MAX, le=INT32_MAX)
    cache_salt: NonEmptyText | None = None
