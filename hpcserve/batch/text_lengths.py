"""Which texts are too long for the model's context, before anything is sent: counted with the endpoint's own code.

A token stands for at least one byte. So a line shorter than the context has room, and only the others are tokenized.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self, get_args

from hpcserve.batch.lines import Item
from hpcserve.config.models import Config
from hpcserve.errors import ContextTooLong, HpcserveError
from hpcserve.frontend.access.tenants import ANYBODY
from hpcserve.frontend.backend import OnOutput
from hpcserve.frontend.context import Frontend
from hpcserve.frontend.offline import prepare
from hpcserve.frontend.prompts.tokenizer import Tokenizer
from hpcserve.observability.metrics import ServiceMetrics
from hpcserve.types import Ability, Caller, EngineInfo, EngineRequest, Phase, Role, Status, WorkerId, WorkerInfo
from hpcserve.types import WorkerState as State

LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_TEMPLATE_TOKENS = 2048  # that a chat template may add to what a line has


class TextLengths:
    """A context manager. The tokenizer is loaded when the first line needs it."""

    def __init__(self, config: Config, context: int) -> None:
        """`context` is the model's, in tokens, prompt and output together."""
        self._config = config
        self._context = context
        self._runner = asyncio.Runner()
        self._frontend: Frontend | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._runner.close()
        if self._frontend is not None:
            self._frontend.tokenizer.close()

    def too_long(self, item: Item, num_bytes: int) -> str | None:
        """Return why the request of a line of so many bytes does not fit, or None; of other faults nothing is said.

        Raises `ConfigError` if the model's files cannot be read.
        """
        wanted = next((item.body[name] for name in LIMITS if isinstance(item.body.get(name), int)), 1)
        if num_bytes + _TEMPLATE_TOKENS + wanted <= self._context:
            return None
        self._frontend = self._frontend or self._make_frontend()
        try:
            self._runner.run(prepare(self._frontend, ANYBODY, item.url, item.body))
        except ContextTooLong as err:
            return f"body: too long: {err.message}"
        except HpcserveError:
            return None  # the endpoint's answer will say it
        return None

    def _make_frontend(self) -> Frontend:
        backend = _Planned(self._config, self._context)
        return Frontend(self._config, backend, Tokenizer.load(self._config.model), ServiceMetrics(backend.status))


LengthCheck = Callable[[Item, int], str | None]
"""`TextLengths.too_long`, or what does the same."""


@contextmanager
def counted_texts(config: Config | None, models: Mapping[str, int | None]) -> Iterator[LengthCheck | None]:
    """Yield the check of a deployment's model; None where its files or its context are not known."""
    context = models.get(config.served_name) if config is not None else None
    if config is None or context is None:
        yield None
        return
    with TextLengths(config, context) as lengths:
        yield lengths.too_long


class _Planned:
    """A `Backend` as it will be: one worker that can do everything. It runs nothing."""

    def __init__(self, config: Config, context: int) -> None:
        engine = EngineInfo(
            engine=config.engine.kind,
            model=config.served_name,
            block_size=config.engine.block_size,
            num_kv_blocks=1,
            max_model_len=context,
            can=get_args(Ability),
        )
        worker = WorkerInfo(worker=WorkerId("planned"), pool="both", role=Role.BOTH, state=State.READY, engine=engine)
        self._status = Status(
            name=config.name,
            phase=Phase.SERVING,
            model=config.served_name,
            mode=config.pools.mode,
            policy=config.router.policy,
            cluster=config.cluster.kind,
            workers=(worker,),
        )

    async def run(self, request: EngineRequest, on_output: OnOutput, caller: Caller) -> None:
        raise RuntimeError("only prompts are made here")

    def status(self) -> Status:
        return self._status
