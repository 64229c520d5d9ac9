"""The router: membership, events and reports in, assignments out.

It keeps no clock and does no I/O: the head calls it from the scheduler's event loop, a simulator in virtual time.
Hashing prompts and carrying messages are the callers' part.
"""

from __future__ import annotations

from dataclasses import replace

from hpcserve.config.models import RouterConfig
from hpcserve.router.approximate import ApproximateIndex
from hpcserve.router.disaggregation import prefills_locally
from hpcserve.router.events import EventLog
from hpcserve.router.fleet import Fleet
from hpcserve.router.index import PrefixIndex
from hpcserve.router.load import LoadBook
from hpcserve.router.policies import Candidate, make_policy
from hpcserve.router.prompt import Prompt
from hpcserve.router.pulls import can_move_kv, find_source
from hpcserve.router.rates import Rates
from hpcserve.router.stats import Counts, RouterStats, WorkerLoad
from hpcserve.router.timing import Timing
from hpcserve.types import (
    Assignment,
    KvEventBatch,
    LoadReport,
    RequestId,
    Role,
    RouteRequest,
    WorkerId,
    WorkerInfo,
)


class Router:
    """One deployment's router. Every method is quick, and none but `assign` raises."""

    def __init__(self, config: RouterConfig, block_size: int) -> None:
        self._config = config
        self._block_size = block_size
        self._fleet = Fleet()
        self._index = PrefixIndex()
        self._events = EventLog(self._index)
        self._approximate = ApproximateIndex(self._index, config.approximate_ttl_s)
        self._book = LoadBook()
        self._rates = Rates(Timing(config.pull_tokens_per_s, config.pull_latency_ms))
        self._decode_policy = make_policy(config, block_size, self._rates)
        self._prefill_policy = make_policy(config, block_size, self._rates)  # its turns are its own
        self._placed: dict[RequestId, Assignment] = {}
        self._waiting: list[RouteRequest] = []
        self._counts = Counts()

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

        False comes with the batch that shows a gap (also with a first batch that is not numbered 0 or 1) or is old
        (it changes nothing, but the worker may have been started again), and with each one after it until a snapshot
        comes; a batch of an unknown worker is dropped, with False too. Until then the worker's blocks are a best
        effort: at worst a hit is expected that misses, or the reverse. Those of engines without KV events are guessed.
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

    def submit(self, request: RouteRequest, now: float) -> None:
        """Have a request wait for `place`. `now` is Unix time, in seconds.

        Raises `Unavailable` if no worker is READY to decode, `Overloaded` if too many wait, and `RateLimited` if too
        many of its tenant do; the latter two say when to try again.
        """
        self._fleet.decoders(request.exclude, now)
        self._waiting.append(request)

    def place(self, now: float) -> list[Assignment]:
        """Assign those of the waiting requests that should start now; call it after anything has changed."""
        waiting, self._waiting = self._waiting, []
        return [self.assign(request, now) for request in waiting]

    def expire(self, now: float) -> list[RequestId]:
        """Drop the requests that have waited for longer than `router.queue.max_wait_s`, and return their ids."""
        return []

    @property
    def num_waiting(self) -> int:
        """Requests that wait for `place`."""
        return len(self._waiting)

    def assign(self, request: RouteRequest, now: float) -> Assignment:
        """Choose the workers of a request and book its load on them. `now` is Unix time, in seconds.

        Workers in `request.exclude`, and those whose job is about to end, are chosen only if nobody else can decode.
        A request that is assigned already is released first. Raises `Unavailable` if no worker is READY to decode.
        """
        self.release(request.request_id)
        self._book.tick(now)
        self._approximate.expire(now)
        decoders = self._fleet.decoders(request.exclude, now)
        prefillers = self._fleet.prefillers(request.exclude, now)
        prompt = self._measure(request, [*decoders, *prefillers])
        remote = {info.worker for info in decoders if self._is_worth_remote_prefill(info, prompt)}
        decode = self._choose_decode(decoders, prefillers, remote if prefillers else set(), prompt, request)
        prefill = None
        if decode in remote:
            prefill = self._choose_prefill([p for p in prefillers if p.worker != decode], prompt, request)
            self._counts.prefill_fallbacks += prefill is None
        self._approximate.placed(decode, request.block_hashes, now)
        if prefill is not None:
            self._approximate.placed(prefill, request.block_hashes, now)
        return self._place(request, prompt, decode, prefill)

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
        self._waiting = [each for each in self._waiting if each.request_id != request_id]
        placed = self._placed.pop(request_id, None)
        if placed is None:
            return
        self._book.release(placed.decode, request_id)
        if placed.prefill is not None:
            self._book.release(placed.prefill, request_id)

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

    def _is_worth_remote_prefill(self, info: WorkerInfo, prompt: Prompt) -> bool:
        """Whether another worker should compute the prompt if `info` decodes. Those of role BOTH do it themselves."""
        return info.role is Role.DECODE and not prefills_locally(
            prompt.uncached_tokens(info.worker), self._config.min_remote_prefill_tokens
        )

    def _measure(self, request: RouteRequest, workers: list[WorkerInfo]) -> Prompt:
        prompt = Prompt(request.num_tokens, self._block_size, self._index.overlaps(request.block_hashes))
        if self._config.policy != "kv" or not self._config.pull:
            return prompt
        return replace(prompt, source=find_source(workers, prompt, self._book))

    def _choose_decode(
        self,
        decoders: list[WorkerInfo],
        prefillers: list[WorkerInfo],
        remote: set[WorkerId],
        prompt: Prompt,
        request: RouteRequest,
    ) -> WorkerId:
        """Choose among `decoders`; those in `remote` get the prompt's KV from one of `prefillers`."""
        elsewhere_ms = min((self._prefill_ms(info, prompt) for info in prefillers), default=0.0) if remote else 0.0
        candidates = []
        for info in decoders:
            load = self._book.of(info.worker)
            capacity = max(0, info.engine.num_kv_blocks) if info.engine else 0
            new_blocks, timing = prompt.new_blocks(info.worker), self._rates.of(info.worker)
            candidates.append(
                self._candidate(
                    info,
                    prompt,
                    load=load.num_requests,
                    prefills=info.worker not in remote,
                    elsewhere_ms=elsewhere_ms + timing.pull_ms(prompt.uncached_tokens(info.worker)),
                    decode_blocks=load.blocks + new_blocks,
                    new_blocks=new_blocks,
                    capacity=capacity,
                )
            )
        return self._decode_policy.choose(candidates, request)

    def _choose_prefill(self, prefillers: list[WorkerInfo], prompt: Prompt, request: RouteRequest) -> WorkerId | None:
        """Choose who computes the prompt; None if nobody else can, and the decode worker has to."""
        candidates = [
            self._candidate(info, prompt, load=self._book.of(info.worker).queued_tokens) for info in prefillers
        ]
        return self._prefill_policy.choose(candidates, request) if candidates else None

    def _candidate(
        self,
        info: WorkerInfo,
        prompt: Prompt,
        *,
        load: int,
        prefills: bool = True,
        elsewhere_ms: float = 0.0,
        decode_blocks: int = 0,
        new_blocks: int = 0,
        capacity: int = 0,
    ) -> Candidate:
        worker, book = info.worker, self._book.of(info.worker)
        return Candidate(
            worker=worker,
            load=load,
            num_queued=book.num_queued if prefills else 0,
            queued_tokens=book.queued_tokens if prefills else 0,
            new_tokens=prompt.uncached_tokens(worker) if prefills else 0,
            pull_tokens=prompt.pullable_tokens(worker) if prefills and can_move_kv(info) else 0,
            elsewhere_ms=0.0 if prefills else elsewhere_ms,
            decode_blocks=decode_blocks,
            new_blocks=new_blocks,
            capacity=capacity,
        )

    def _prefill_ms(self, info: WorkerInfo, prompt: Prompt) -> float:
        queued = self._book.of(info.worker).queued_tokens
        return self._rates.of(info.worker).prefill_ms(queued + prompt.uncached_tokens(info.worker))

    def _place(self, request: RouteRequest, prompt: Prompt, decode: WorkerId, prefill: WorkerId | None) -> Assignment:
        computes = decode if prefill is None else prefill
        source = self._pulls_from(computes, prompt)
        cached = prompt.cached_tokens(source or computes)
        uncached = prompt.num_tokens - cached
        if prefill is not None:
            self._book.book(prefill, request.request_id, prefill_tokens=uncached, blocks=prompt.new_blocks(prefill))
        local = uncached if prefill is None else 0
        self._book.book(decode, request.request_id, prefill_tokens=local, blocks=prompt.new_blocks(decode))
        assignment = Assignment(
            request_id=request.request_id,
            decode=decode,
            prefill=prefill,
            cached_tokens=prompt.cached_tokens(computes),
            source=source,
            source_tokens=cached // self._block_size * self._block_size if source else 0,
        )
        self._placed[request.request_id] = assignment
        self._counts.placed(self._config.policy, prompt.num_tokens, cached, is_remote=prefill is not None)
        return assignment

    def _pulls_from(self, worker: WorkerId, prompt: Prompt) -> WorkerId | None:
        """Return whom `worker` pulls from; None if computing what it lacks is faster, or all that it can do."""
        info, pullable = self._fleet.get(worker), prompt.pullable_tokens(worker)
        if not pullable or info is None or not can_move_kv(info):
            return None
        pull_ms, _ = self._rates.of(worker).cheapest(prompt.uncached_tokens(worker), pullable)
        return prompt.source if pull_ms else None
