"""What is answered about the service: models, tokens, health."""

from __future__ import annotations

from typing import Literal

from hpcserve.frontend.replies.body import Reply


class Model(Reply, frozen=True):
    """OpenAI's Model object, with vLLM's extras."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(Reply, frozen=True):
    """The served models: one, or none until it is served."""

    object: Literal["list"]
    data: list[Model]


class Tokenized(Reply, frozen=True):
    """Token ids of a prompt or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Reply, frozen=True):
    """The text of token ids."""

    prompt: str


class Healthy(Reply, frozen=True):
    """Requests are served."""

    status: Literal["ok"]
    phase: str


class Alive(Reply, frozen=True):
    """The process answers."""

    status: Literal["ok"]
