"""Whether a request may go on to the engines at all: the model is served here, and somebody is ready."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from hpcserve.errors import ModelNotFound, Unavailable, Unsupported
from hpcserve.frontend.backend import context_length, known_workers, why_not_ready
from hpcserve.frontend.context import Frontend
from hpcserve.types import Ability

_Kind = Literal["generate", "embed"]
_ADVICE: dict[_Kind, str] = {
    "generate": "the engines of this deployment embed, and generate nothing; use /v1/embeddings",
    "embed": (
        "embeddings are not supported: the engines of this deployment generate; start one of an embedding model, with"
        ' "runner": "pooling" in engine.vllm.args'
    ),
}


def admit(frontend: Frontend, model: str, needs: _Kind | None = None) -> int:
    """Return the context length in tokens.

    Raises `ModelNotFound`, `Unavailable`, or `Unsupported` where the engines cannot do what is needed.
    """
    check_model(frontend, model)
    status = frontend.backend.status()
    reason = why_not_ready(status)
    if reason is not None:
        raise Unavailable(f"cannot serve now: {reason}; try again later")
    if needs is not None and needs not in abilities(frontend):
        raise Unsupported(_ADVICE[needs], param="model")
    return context_length(status)


def check_model(frontend: Frontend, model: str) -> None:
    """Raise `ModelNotFound` unless `model` is the one that is served."""
    served = frontend.config.served_name
    if model != served:
        raise ModelNotFound(f"the model {model[:100]!r} is not served here; use {served!r}", param="model")


def abilities(frontend: Frontend) -> frozenset[Ability]:
    """Return what every engine that may get a request can do."""
    workers = known_workers(frontend.backend.status())
    return _common(tuple(each.engine.can for each in workers if each.engine is not None))


@lru_cache(maxsize=8)  # asked for every request, and the same until workers come or go
def _common(each_can: tuple[tuple[Ability, ...], ...]) -> frozenset[Ability]:
    return frozenset(set.intersection(*map(set, each_can))) if each_can else frozenset()
