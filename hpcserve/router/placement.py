"""Where requests run: one at a time by the policy, or, under `kv`, those that wait together. It books nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from hpcserve.errors import Unavailable
from hpcserve.router.burst import NEVER, Burst, choose, pack
from hpcserve.router.candidates import Candidates
from hpcserve.router.disaggregation import prefills_locally
from hpcserve.router.fleet import Fleet
from hpcserve.router.lasting import Lasting
from hpcserve.router.load import LoadBook
from hpcserve.router.policies import Kv, Policy
from hpcserve.router.prompt import Prompt
from hpcserve.router.rates import Rates
from hpcserve.router.waiting import PATIENCE, Waiting
from hpcserve.types import Role, RouteRequest, WorkerId, WorkerInfo

MOST_AT_ONCE = 64
"""Requests that are looked at together: finding their places takes time that grows with the square."""
TURN_MS = 1e-3
"""Of workers that cost the same, whoever has had its turn later costs so much more: all caches get filled."""
RESERVE_AFTER_S = 10.0
"""A request that waits for so long for room in a cache has a worker kept free of others until it fits."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where one request runs."""

    request: RouteRequest
    prompt: Prompt
    decode: WorkerId
    prefill: WorkerId | None
    is_fallback: bool = False  # the decode worker computes a prompt that it should not have to


@dataclass(slots=True)
class _Row:
    """One of those that wait, and what it would cost where."""

    waiting: Waiting
    unit: int  # those of one start together
    prompt: Prompt
    work_ms: float


class Placement:
    """Chooses workers. Only READY ones, none that the request was lost on or that it would outlast, if others."""

    def __init__(
        self,
        fleet: Fleet,
        book: LoadBook,
        rates: Rates,
        decode_policy: Policy,
        prefill_policy: Policy,
        measure: Callable[[RouteRequest, list[WorkerInfo]], Prompt],
        min_remote_prefill_tokens: int,
        lasting: Lasting,
        *,
        num_waiting: Callable[[], int],
        num_per_hand: int,
    ) -> None:
        """`num_per_hand` requests, 1 or 2, are looked at for each worker that is free: with 1 nobody is overtaken."""
        self._fleet = fleet
        self._book = book
        self._rates = rates
        self._decode_policy = decode_policy
        self._prefill_policy = prefill_policy
        self._measure = measure
        self._min_remote_prefill_tokens = min_remote_prefill_tokens
        self._lasting = lasting
        self._num_waiting = num_waiting
        self._num_per_hand = num_per_hand
        self._candidates = Candidates(book, rates)
        self.wants_room = False  # somebody could have had a prefill worker, and no decode worker had room

    def choose_now(self, request: RouteRequest, now: float) -> Choice:
        """Choose whatever the loads are. Raises `Unavailable` if no worker is READY to decode."""
        decoders = self._fleet.decoders(request.exclude, now)
        return self.choose_among(request, decoders, self._fleet.prefillers(request.exclude, now), now)

    def choose_among(
        self, request: RouteRequest, decoders: list[WorkerInfo], prefillers: list[WorkerInfo], now: float
    ) -> Choice:
        """Choose one of `decoders`, of which there must be some, and if need be one of `prefillers`."""
        decoders = self._lasting.among(decoders, request.num_tokens, request.max_tokens, now)
        prefillers = self._lasting.among(prefillers, request.num_tokens, 0, now)
        prompt = self._measure(request, [*decoders, *prefillers])
        decode, is_remote = self._choose_decode(decoders, prefillers, prompt, request)
        if not is_remote:
            return Choice(request, prompt, decode, None)
        candidates = [self._candidates.prefilling(info, prompt) for info in prefillers if info.worker != decode]
        if not candidates:
            return Choice(request, prompt, decode, None, is_fallback=True)
        return Choice(request, prompt, decode, self._prefill_policy.choose(candidates, request))

    def work_ms(self, request: RouteRequest, now: float) -> float:
        """Predict how long the prompt takes to compute where most of it is cached. Raises `Unavailable`."""
        decoders = self._fleet.decoders(request.exclude, now)
        return self._work_ms(self._measure(request, decoders), decoders[0])

    def choose_together(self, waiting: Callable[[int], list[Waiting]], now: float) -> Iterator[Choice]:
        """Choose for those that should start now; `waiting(n)` returns the next n. Book each before taking the next."""
        try:
            decoders = self._fleet.decoders((), now)
        except Unavailable:
            return
        prefillers = self._fleet.prefillers((), now)
        is_split = any(info.role is Role.DECODE for info in decoders) and bool(prefillers)
        columns = prefillers if is_split else decoders
        free = np.array([not self._book.of(info.worker).num_queued for info in columns])
        num_free = int(free.sum())
        self.wants_room = is_split and not num_free and self.wants_room  # it stays as last seen with somebody free
        if not num_free and not is_split:
            return
        lines = waiting(MOST_AT_ONCE)
        if num_free:
            rows = self._rows(self._units(lines, num_free, columns[0], now), [*decoders, *prefillers])
        else:
            rows = self._rows([[each] for each in lines if not each.needs_prefill], [*decoders, *prefillers])
        if is_split:
            rows = yield from self._choose_local(rows, decoders, prefillers, now)
        if not rows or not num_free:
            return
        for row, info in self._match(rows, columns, free, is_split=is_split, now=now):
            if not is_split:
                is_fallback = self._is_worth_remote_prefill(info, row.prompt)
                yield Choice(row.waiting.request, row.prompt, info.worker, None, is_fallback)
            elif (choice := self._choose_split(row, decoders, [info], now)) is not None:
                yield choice

    def _choose_local(
        self, rows: list[_Row], decoders: list[WorkerInfo], prefillers: list[WorkerInfo], now: float
    ) -> Generator[Choice, None, list[_Row]]:
        """Choose for those whose decode worker had better compute the prompt itself; return those it had better not."""
        remote = []
        for row in rows:
            choice = self._choose_split(row, decoders, prefillers, now)
            if choice is None:
                continue
            row.waiting.needs_prefill = choice.prefill is not None
            if row.waiting.needs_prefill:
                remote.append(row)
            else:
                yield choice
        return remote

    def _units(self, lines: list[Waiting], num_free: int, anybody: WorkerInfo, now: float) -> list[list[Waiting]]:
        """Return who might start now, in order, and who of them together."""
        num_per_hand = self._num_per_hand
        if len({each.tenant for each in lines}) > 1:
            num_per_hand = 1  # they take turns: none is overtaken by another's shorter ones
        elif num_per_hand > 1:
            lines = sorted(lines, key=lambda each: PATIENCE * each.work_ms - (now - each.since) * 1000)
        pass_ms = self._rates.of(anybody.worker).prefill_ms(1)
        units = pack([each.work_ms for each in lines], num_free, self._num_waiting() - len(lines), pass_ms)
        return [[lines[number] for number in unit] for unit in units[: num_per_hand * num_free]]

    def _rows(self, units: list[list[Waiting]], workers: list[WorkerInfo]) -> list[_Row]:
        rows = []
        for number, unit in enumerate(units):
            for each in unit:
                prompt = self._measure(each.request, workers)
                rows.append(_Row(each, number, prompt, self._work_ms(prompt, workers[0])))
        return rows

    def _match(
        self, rows: list[_Row], columns: list[WorkerInfo], free: np.ndarray, *, is_split: bool, now: float
    ) -> list[tuple[_Row, WorkerInfo]]:
        policy = self._prefill_policy if is_split else self._decode_policy
        assert isinstance(policy, Kv)
        costs = np.full((len(rows), len(columns)), NEVER)
        for number, row in enumerate(rows):
            for column, info in enumerate(columns):
                if is_split:
                    costs[number, column] = policy.cost_ms(self._candidates.prefilling(info, row.prompt))
                elif self._candidates.has_room(info, row.prompt):
                    costs[number, column] = policy.cost_ms(self._candidates.computing(info, row.prompt))
            self._exclude(costs[number], row.waiting.request, columns, now, decodes=not is_split)
        if not is_split:
            self._reserve(costs, rows, columns, now)
        costs += TURN_MS * np.argsort(np.argsort([policy.turns.last(info.worker) for info in columns]))
        free_at = np.array([self._book.of(info.worker).computed_at for info in columns])
        units: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            units.setdefault(row.unit, []).append(number)
        burst = Burst(
            units=list(units.values()),
            work=[row.work_ms for row in rows],
            waited=[(now - row.waiting.since) * 1000 for row in rows],
            costs=costs,
            is_free=free,
            free_in=np.maximum(free_at - now, 0.0) * 1000,
        )
        chosen = [(rows[number], columns[column]) for number, column in choose(burst)]
        for _, info in chosen:
            policy.turns.take(info.worker)
        return chosen

    def _exclude(
        self, costs: np.ndarray, request: RouteRequest, columns: list[WorkerInfo], now: float, *, decodes: bool
    ) -> None:
        """Rule out the workers that the request was lost on, and those that do not last for it, if there are others."""
        able = [info for info in columns if info.worker not in request.exclude] or columns
        able = self._lasting.among(able, request.num_tokens, request.max_tokens if decodes else 0, now)
        if len(able) < len(columns):
            chosen = {info.worker for info in able}
            costs[[column for column, info in enumerate(columns) if info.worker not in chosen]] = NEVER

    def _reserve(self, costs: np.ndarray, rows: list[_Row], columns: list[WorkerInfo], now: float) -> None:
        """Keep a worker free of others for each that waits for long and fits nowhere."""
        kept: set[int] = set()
        for number, row in enumerate(rows):
            if now - row.waiting.since < RESERVE_AFTER_S or (costs[number] < NEVER).any() or len(kept) == len(columns):
                continue
            column = max(
                (column for column in range(len(columns)) if column not in kept),
                key=lambda column: self._candidates.num_free_blocks(columns[column]),
            )
            kept.add(column)
            costs[:, column] = NEVER

    def _choose_split(
        self, row: _Row, decoders: list[WorkerInfo], prefillers: list[WorkerInfo], now: float
    ) -> Choice | None:
        """Choose who decodes, among those with room, of a prompt that one of `prefillers` may compute.

        None if nobody has room, or if who decodes has to compute it and has prompts to compute already.
        """
        request = row.waiting.request
        able = [info for info in decoders if info.worker not in request.exclude] or decoders
        able = self._lasting.among(able, request.num_tokens, request.max_tokens, now)
        able = [info for info in able if self._candidates.has_room(info, row.prompt)]
        if not able:
            self.wants_room |= any(not self._book.of(info.worker).num_queued for info in prefillers)
            return None
        decode, is_remote = self._choose_decode(able, prefillers, row.prompt, request)
        if is_remote:
            return Choice(request, row.prompt, decode, prefillers[0].worker)
        role = next(info.role for info in able if info.worker == decode)
        if role is Role.BOTH and self._book.of(decode).num_queued:
            return None
        return Choice(request, row.prompt, decode, None)

    def _choose_decode(
        self, decoders: list[WorkerInfo], prefillers: list[WorkerInfo], prompt: Prompt, request: RouteRequest
    ) -> tuple[WorkerId, bool]:
        """Return who decodes, and whether another worker should compute the prompt."""
        remote = {info.worker for info in decoders if self._is_worth_remote_prefill(info, prompt)}
        candidates = self._candidates.decoding(decoders, prompt, remote if prefillers else set(), prefillers)
        decode = self._decode_policy.choose(candidates, request)
        return decode, decode in remote

    def _is_worth_remote_prefill(self, info: WorkerInfo, prompt: Prompt) -> bool:
        """Whether another worker should compute the prompt if `info` decodes. Those of role BOTH do it themselves."""
        return info.role is Role.DECODE and not prefills_locally(
            prompt.uncached_tokens(info.worker), self._min_remote_prefill_tokens
        )

    def _work_ms(self, prompt: Prompt, anybody: WorkerInfo) -> float:
        best = max(prompt.overlaps, key=prompt.overlaps.__getitem__, default=anybody.worker)
        return self._rates.of(best).prefill_ms(prompt.uncached_tokens(best))
