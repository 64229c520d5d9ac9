"""Workers as policies see them: what each has to do already, and what one more request would add."""

from __future__ import annotations

from collections.abc import Sequence

from hpcserve.router.load import LoadBook
from hpcserve.router.policies import Candidate
from hpcserve.router.policies.kv import ROOM
from hpcserve.router.prompt import Prompt
from hpcserve.router.pulls import can_move_kv
from hpcserve.router.rates import Rates
from hpcserve.types import WorkerId, WorkerInfo


class Candidates:
    """Makes them from the bookings and the learned rates."""

    def __init__(self, book: LoadBook, rates: Rates) -> None:
        self._book = book
        self._rates = rates

    def decoding(
        self, workers: Sequence[WorkerInfo], prompt: Prompt, remote: set[WorkerId], prefillers: Sequence[WorkerInfo]
    ) -> list[Candidate]:
        """Return `workers` as those that decode; `remote` ones get the prompt's KV from one of `prefillers`."""
        elsewhere_ms = min((self._prefill_ms(info, prompt) for info in prefillers), default=0.0) if remote else 0.0
        return [
            self._elsewhere(info, prompt, elsewhere_ms) if info.worker in remote else self.computing(info, prompt)
            for info in workers
        ]

    def computing(self, info: WorkerInfo, prompt: Prompt) -> Candidate:
        """Return a worker as one that computes the prompt and decodes."""
        worker, load = info.worker, self._book.of(info.worker)
        new_blocks = prompt.new_blocks(worker)
        return Candidate(
            worker=worker,
            load=load.num_requests,
            num_queued=load.num_queued,
            queued_tokens=load.queued_tokens,
            new_tokens=prompt.uncached_tokens(worker),
            pull_tokens=prompt.pullable_tokens(worker) if can_move_kv(info) else 0,
            decode_blocks=load.blocks + new_blocks,
            new_blocks=new_blocks,
            capacity=_capacity(info),
        )

    def prefilling(self, info: WorkerInfo, prompt: Prompt) -> Candidate:
        """Return a worker as one that computes the prompt for another."""
        worker, load = info.worker, self._book.of(info.worker)
        return Candidate(
            worker=worker,
            load=load.queued_tokens,
            num_queued=load.num_queued,
            queued_tokens=load.queued_tokens,
            new_tokens=prompt.uncached_tokens(worker),
            pull_tokens=prompt.pullable_tokens(worker) if can_move_kv(info) else 0,
        )

    def has_room(self, info: WorkerInfo, prompt: Prompt) -> bool:
        """Whether a worker has a sequence free, and blocks beside what is there; an empty one has room for anything."""
        load, capacity = self._book.of(info.worker), _capacity(info)
        if not load.bookings:
            return True
        most = info.engine.max_num_seqs if info.engine is not None else None
        if most is not None and load.num_requests >= most:
            return False  # it would wait in the engine, for somebody's last token
        if not capacity:
            return True
        return load.blocks + prompt.new_blocks(info.worker) <= ROOM * capacity

    def num_free_blocks(self, info: WorkerInfo) -> int:
        """Return how many blocks are not booked."""
        return _capacity(info) - self._book.of(info.worker).blocks

    def _elsewhere(self, info: WorkerInfo, prompt: Prompt, elsewhere_ms: float) -> Candidate:
        worker, load = info.worker, self._book.of(info.worker)
        new_blocks = prompt.new_blocks(worker)
        return Candidate(
            worker=worker,
            load=load.num_requests,
            elsewhere_ms=elsewhere_ms + self._rates.of(worker).pull_ms(prompt.uncached_tokens(worker)),
            decode_blocks=load.blocks + new_blocks,
            new_blocks=new_blocks,
            capacity=_capacity(info),
        )

    def _prefill_ms(self, info: WorkerInfo, prompt: Prompt) -> float:
        queued = self._book.of(info.worker).queued_tokens
        return self._rates.of(info.worker).prefill_ms(queued + prompt.uncached_tokens(info.worker))


def _capacity(info: WorkerInfo) -> int:
    return max(0, info.engine.num_kv_blocks) if info.engine else 0
