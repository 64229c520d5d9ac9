"""The answer to a request for embeddings."""

from __future__ import annotations

from typing import Literal

from hpcserve.frontend.replies.body import PromptTokensDetails, Reply


class Embedding(Reply, frozen=True):
    """Of one input: a list of floats, or float32, little-endian, in base64."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingUsage(Reply, frozen=True):
    """Tokens of all inputs. Nothing is generated."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0]
    prompt_tokens_details: PromptTokensDetails


class Embeddings(Reply, frozen=True):
    """The embeddings of all inputs, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
