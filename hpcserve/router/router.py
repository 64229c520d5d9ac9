"""The router: membership, events and reports in, assignments out.

It keeps no clock and does no I/O: the head calls it from its event loop, a simulator in virtual time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from hpcserve.config.models import RouterConfig
from hpcserve.errors import Unavailable
from hpcserve.router.approximate import ApproximateIndex
from hpcserve.router.backfill import BackfillRule
from hpcserve.router.backfilling import Backfilling
from hpcserve.router.events import EventLog
from hpcserve.router.fleet import Fleet
from hpcserve.router.index import PrefixIndex
from hpcserve.router.lasting import Lasting
from hpcserve.router.load import LoadBook
from hpcserve.router.outlook import Outlook
from hpcserve.router.placement import Choice, Placement
from hpcserve.router.policies import make_policy
from hpcserve.router.prompt import Prompt
from hpcserve.router.pulls import can_move_kv, find_source
from hpcserve.router.rates import Rates
from hpcserve.router.stats import Counts, RouterStats, WorkerLoad
from hpcserve.router.timing import Timing
from hpcserve.router.waiting import WaitingRoom
from hpcserve.types import (
    Assignment,
    BlockHash,
    KvEventBatch,
    LoadReport,
    RequestId,
    RouteRequest,
    WorkerId,
    WorkerInfo,
)


class Router:
    """One deployment's router. Every method is quick, and none but `submit` and `assign` raises."""

    def __init__(
        self, config: RouterConfig, block_size: int, backfill: BackfillRule | None = None, leave_s: float = 0.0
    ) -> None:
        """`backfill` says which requests belong to batches; `leave_s` is `Lasting`'s."""
        self._config = config
        self._block_size = block_size
        self._fleet = Fleet()
        self._index = PrefixIndex()
        self._events = EventLog(self._index)
        self._approximate = ApproximateIndex(self._index, config.approximate_ttl_s)
        self._book = LoadBook()
        self._rates = Rates(Timing(config.pull_tokens_per_s, config.pull_latency_ms))
        self._is_kv = config.policy == "kv"
        self._decode_policy = make_policy(config, block_size, self._rates)
        self._prefill_policy = make_policy(config, block_size, self._rates)  # its turns are its own
        self._placed: dict[RequestId, Assignment] = {}
        self._waiting = WaitingRoom(config.queue, is_fcfs=not self._is_kv)
        self.lasting = Lasting(self._fleet, self._book, self._rates, leave_s)
        self._placement = Placement(
            self._fleet,
            self._book,
            self._rates,
            self._decode_policy,
            self._prefill_policy,
            self._measure,
            config.min_remote_prefill_tokens,
            self.lasting,
            num_waiting=self._waiting.__len__,
            num_per_hand=2 if config.queue.order == "shortest" else 1,
        )
        rule = backfill or BackfillRule()
        self._backfilling = Backfilling(rule, config.queue, self._fleet, self._book, self._placement)
        self._counts = Counts()
        self.outlook = Outlook(self._counts, self._waiting, self._placement, self._book, self._rates)

    def update_worker(self, info: WorkerInfo) -> None:
        """Take a worker in, or its new state or role. A stopped or failed one is removed."""
        if info.state.is_final:
            self.remove_worker(info.worker)
            return
        self._fleet.update(info)
        self._events.open(info.worker)
        if info.engine is not None and not info.engine.has_kv_events:
            self._approximate.open(info.worker, info.engine.num_kv_blocks)
        self._book.open(info.worker, info.engine)
        self._rates.open(info.worker, info.pool)

    def remove_worker(self, worker: WorkerId) -> None:
        """Forget a worker, its blocks, and what is booked on it. Unknown ones are ignored."""
        self._fleet.remove(worker)
        self._approximate.close(worker)
        self._events.close(worker)
        self._book.close(worker)
        self._rates.close(worker)
        self._decode_policy.forget(worker)
        self._prefill_policy.forget(worker)

    def apply(self, batch: KvEventBatch) -> bool:
        """Take KV events. Returns False while a snapshot of the worker is needed: ask for one, and keep applying.

        False comes with the batch that shows a gap (also with a first batch that is not numbered 0 or 1) or is old (it
        changes nothing, but the worker may have been started again), and until a snapshot comes; a batch of an unknown
        worker is dropped. Until then its blocks are a best effort; those of engines without KV events are guessed.
        """
        if batch.worker in self._approximate:
            return True
        is_exact = self._events.apply(batch)
        self._counts.event_gaps += not is_exact
        return is_exact

    def report(self, worker: WorkerId, report: LoadReport) -> None:
        """Take an engine's measurements. Those of unknown workers are ignored."""
        self._book.report(worker, report)
        self._rates.report(worker, report)

    def let_wait(self, *, without_workers: bool) -> None:
        """Say whether requests may wait while no worker is READY: because one is on its way, or will be."""
        self._fleet.may_be_empty = without_workers

    def submit(self, request: RouteRequest, now: float) -> None:
        """Have a request wait for `place`. `now` is Unix time, in seconds. One that is assigned is released first.

        Raises `Unavailable` if no worker is READY to decode (see `let_wait`), `Overloaded` if too many wait, and
        `RateLimited` if too many of its tenant do; the latter two say when to try again.
        """
        self.release(request.request_id)
        if self._backfilling.takes(request):
            self._backfilling.add(request, self._fleet.num_decoders(now), now)
            return
        num_workers = self._fleet.num_decoders(now)
        self._waiting.check(request, num_workers)
        work_ms = (
            self._placement.work_ms(request, now) if num_workers else self._rates.prior.prefill_ms(request.num_tokens)
        )
        self._counts.came(work_ms)
        self._backfilling.note_online(work_ms, now)
        self._waiting.add(request, work_ms if self._is_kv else 0.0, now)  # the others let nobody wait

    def place(self, now: float) -> list[Assignment]:
        """Assign those of the waiting requests that should start now; call it after anything has changed.

        Under policy `kv` a request waits until a worker has computed the prompts that it has, and has room; with
        others it never does. Those of batches wait under any policy, and for all others.
        """
        placed: list[Assignment] = []
        self._tick(now)
        while self._waiting:
            before = len(placed)
            for choice in self._choose(now):
                self._waiting.remove(choice.request.request_id, is_placed=True)
                placed.append(self._place(choice, now))
            if len(placed) == before:
                break
        if not self._waiting:
            while (filling := self._backfilling.next(now)) is not None:
                self._backfilling.take(filling)
                placed.append(self._place(filling, now))
        return placed

    def expire(self, now: float) -> list[RequestId]:
        """Drop the requests that have waited for longer than `router.queue.max_wait_s`, and return their ids."""
        expired = self._waiting.expired(now)
        for request_id in expired:
            self._waiting.remove(request_id)
        return expired

    @property
    def num_waiting(self) -> int:
        """Requests that wait for `place`."""
        return len(self._waiting)

    @property
    def num_backfilling(self) -> int:
        """Requests of batches that wait for `place`."""
        return len(self._backfilling)

    def assign(self, request: RouteRequest, now: float) -> Assignment:
        """Choose the workers of a request at once, whoever waits, and book its load on them. Raises `Unavailable`.

        Workers in `request.exclude` are chosen only if nobody else can decode. If assigned, it is released first.
        """
        self.release(request.request_id)
        self._tick(now)
        return self._place(self._placement.choose_now(request, now), now)

    def restore(self, placed: Assignment, num_tokens: int, *, is_prefilled: bool) -> None:
        """Book what an earlier router assigned, and what still runs there. Not on workers that are not known."""
        if self._fleet.get(placed.decode) is None:
            return
        uncached = 0 if is_prefilled else num_tokens - placed.cached_tokens
        if placed.prefill is not None and self._fleet.get(placed.prefill) is not None and uncached:
            self._book.book(placed.prefill, placed.request_id, prefill_tokens=uncached, blocks=0)
            uncached = 0
        blocks = num_tokens // self._block_size
        self._book.book(placed.decode, placed.request_id, prefill_tokens=uncached, blocks=blocks)
        self._placed[placed.request_id] = placed

    def prefill_done(self, request_id: RequestId) -> None:
        """The prompt is computed: it queues nowhere any more, and a separate prefill worker is free of the request."""
        placed = self._placed.get(request_id)
        if placed is None:
            return
        if placed.prefill is None:
            self._book.prefill_done(placed.decode, request_id)
        else:
            self._book.release(placed.prefill, request_id)

    def release(self, request_id: RequestId) -> None:
        """The request has ended, waits no more, or will be assigned anew. Unknown ids are ignored."""
        self._waiting.remove(request_id)
        self._backfilling.remove(request_id)
        placed = self._placed.pop(request_id, None)
        if placed is None:
            return
        self._book.release(placed.decode, request_id)
        if placed.prefill is not None:
            self._book.release(placed.prefill, request_id)

    def overlaps(self, block_hashes: Sequence[BlockHash]) -> dict[WorkerId, int]:
        """Return how many leading blocks each worker holds; workers that hold none are left out."""
        return self._index.overlaps(block_hashes)

    def loads(self) -> dict[WorkerId, WorkerLoad]:
        """Return the load of every worker that is neither stopped nor failed."""
        return {worker: self._book.view(worker, self._index.num_blocks(worker)) for worker in self._fleet}

    def stats(self) -> RouterStats:
        """Return the counters."""
        counts = self._counts
        return RouterStats(
            policy=self._config.policy,
            assignments=dict(counts.assignments),
            remote_prefills=counts.remote_prefills,
            local_prefills=counts.local_prefills,
            prefill_fallbacks=counts.prefill_fallbacks,
            prompt_tokens=counts.prompt_tokens,
            expected_cached_tokens=counts.expected_cached_tokens,
            event_gaps=counts.event_gaps,
            active_requests=len(self._placed),
            indexed_blocks=len(self._index),
        )

    def _measure(self, request: RouteRequest, workers: list[WorkerInfo]) -> Prompt:
        prompt = Prompt(request.num_tokens, self._block_size, self._index.overlaps(request.block_hashes))
        if not self._is_kv or not self._config.pull:
            return prompt
        return replace(prompt, source=find_source(workers, prompt, self._book))

    def _choose(self, now: float) -> Iterable[Choice]:
        if self._is_kv:
            return self._placement.choose_together(self._waiting.next, now)
        return self._choose_one(now)

    def _choose_one(self, now: float) -> Iterator[Choice]:
        with suppress(Unavailable):
            yield self._placement.choose_now(self._waiting.next(1)[0].request, now)

    def _place(self, choice: Choice, now: float) -> Assignment:
        request, prompt, decode, prefill = choice.request, choice.prompt, choice.decode, choice.prefill
        computes = decode if prefill is None else prefill
        source, work_ms = self._fetch(computes, prompt)
        cached = prompt.cached_tokens(source or computes)
        uncached = prompt.num_tokens - cached
        for worker in {decode, computes}:
            work = uncached if worker == computes else 0
            self._approximate.placed(worker, request.block_hashes, now)
            self._book.book(worker, request.request_id, prefill_tokens=work, blocks=prompt.new_blocks(worker))
        self._book.expect(computes, work_ms / 1000, now)
        assignment = Assignment(
            request_id=request.request_id,
            decode=decode,
            prefill=prefill,
            cached_tokens=prompt.cached_tokens(computes),
            source=source,
            source_tokens=cached // self._block_size * self._block_size if source else 0,
            reused_tokens=max(map(prompt.cached_tokens, prompt.overlaps), default=0) if self._is_kv else 0,
        )
        self._placed[request.request_id] = assignment
        self._counts.placed(self._config.policy, prompt.num_tokens, cached, is_remote=prefill is not None)
        self._counts.prefill_fallbacks += choice.is_fallback
        return assignment

    def _tick(self, now: float) -> None:
        self._book.tick(now)
        self._approximate.expire(now)

    def _fetch(self, worker: WorkerId, prompt: Prompt) -> tuple[WorkerId | None, float]:
        """Return whom `worker` pulls from, and the milliseconds until it has pulled and computed what it lacks.

        It pulls from nobody if computing is faster, or all that it can do.
        """
        info, timing = self._fleet.get(worker), self._rates.of(worker)
        pullable = prompt.pullable_tokens(worker) if info is not None and can_move_kv(info) else 0
        pull_ms, rest = timing.cheapest(prompt.uncached_tokens(worker), pullable)
        return prompt.source if pull_ms else None, pull_ms + timing.prefill_ms(rest)
