"""Continuous batching over paged KV, in virtual time: what runs in a step, how long the step takes, who gets a token.

The rules are those of vLLM's scheduler as Dynamo's mocker models it. A step first serves what runs, in order of
admission, then admits from the queue while tokens, sequences and blocks are left; prompts are cut into chunks, and
decoding mixes with prefilling. When blocks run out, the sequence admitted last is preempted: it loses its blocks, keeps
its tokens, and computes them again. A step takes one prefill pass over its new prompt tokens, which also gives first
tokens, plus one decode step if any sequence decodes.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from hpcserve.engine.mock.block_pool import BlockPool
from hpcserve.engine.mock.sequence import Sequence, SequenceState
from hpcserve.engine.mock.timing import TimingModel
from hpcserve.types import KvEvent, RequestId


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes of one engine."""

    num_blocks: int
    block_size: int  # tokens
    max_num_seqs: int
    max_batched_tokens: int  # in a step


@dataclass(slots=True)
class Step:
    """What one step did."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    prefill_tokens: int = 0
    decode_context: int = 0  # tokens of the sequences that decode, all together; what they share counts for each
    emitted: list[Sequence] = field(default_factory=list)  # got one token each
    finished: list[Sequence] = field(default_factory=list)  # of these, the ones that ended
    events: list[KvEvent] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """Both parts, one after the other."""
        return self.prefill_s + self.decode_s


class Scheduler:
    """One engine's queue, batch and blocks. Times are seconds on a clock of the caller's."""

    def __init__(self, limits: Limits, timing: TimingModel) -> None:
        self.limits = limits
        self.timing = timing
        self.pool = BlockPool(limits.num_blocks)
        self.num_preemptions = 0
        self._sequences: dict[RequestId, Sequence] = {}
        self._running: list[Sequence] = []  # in order of admission
        self._landed: deque[Sequence] = deque()
        self._waiting: list[tuple[int, int, Sequence]] = []  # heap of (priority, order); may hold DONE ones
        self._pulls: list[tuple[float, int, Sequence]] = []  # heap of (end, order); may hold DONE ones
        self._link_free_at = 0.0
        self._num_arrived = 0
        self._is_stalled = False  # the last step could do nothing

    @property
    def sequences(self) -> dict[RequestId, Sequence]:
        """Every sequence that has not ended. Not to be changed by the caller."""
        return self._sequences

    @property
    def num_running(self) -> int:
        """Sequences that are in the batch."""
        return len(self._running)

    def kv_read(self, context: float) -> float:
        """Return the share of the KV cache that so many tokens of context are; at most all of it."""
        return min(1.0, context / (self.limits.num_blocks * self.limits.block_size))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises `ValueError` if its prompt can never fit, or its id is in use.

        Its writer must end it before prompt and output together fill all blocks of the engine.
        """
        needed = self._blocks_for(sequence.num_prompt)
        if needed > self.limits.num_blocks:
            raise ValueError(f"the prompt needs {needed} KV blocks, the engine has {self.limits.num_blocks}")
        if sequence.request_id in self._sequences:
            raise ValueError(f"request {sequence.request_id} is running already")
        self._num_arrived += 1
        sequence.order = self._num_arrived
        self._sequences[sequence.request_id] = sequence
        self._enqueue(sequence)

    def abort(self, request_id: RequestId) -> bool:
        """End a sequence now and free its blocks. Returns whether there was one."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        if sequence.state is SequenceState.RUNNING:
            self._running.remove(sequence)
        elif sequence.state is SequenceState.LANDED:
            self._landed.remove(sequence)
        self._end(sequence)
        return True

    def wakes_at(self, now: float) -> float | None:
        """Return when `step` can do something: `now`, the end of a pull, or None while nothing is there to do."""
        if not self._is_stalled and (self._running or self._landed or self._waiting):
            return now
        return max(now, self._pulls[0][0]) if self._pulls else None

    def step(self, now: float) -> Step:
        """Run one step that begins at `now`. Its tokens and events are there at `now + duration_s`."""
        self._land_pulls(now)
        step = Step()
        budget, is_short = self._continue_running(step)
        if not is_short:
            self._admit(step, budget, now)
        step.emitted = [s for s in self._running if s.num_computed == s.num_tokens]
        step.prefill_s = self.timing.prefill_s(step.prefill_tokens)
        if step.decode_context:
            step.decode_s = self.timing.decode_s(self.kv_read(step.decode_context))
        self._write(step)
        step.events = self.pool.take_events()
        self._is_stalled = not (step.emitted or step.prefill_tokens or self._running)
        return step

    def _continue_running(self, step: Step) -> tuple[int, bool]:
        """Advance what runs. Returns the tokens left in the step, and whether blocks ran out."""
        budget = self.limits.max_batched_tokens
        before = self.num_preemptions
        index = 0
        while index < len(self._running) and budget:
            sequence = self._running[index]
            count = min(sequence.num_tokens - sequence.num_computed, budget)
            if not self._reserve(sequence, sequence.num_computed + count):
                break
            self._advance(sequence, count, step)
            budget -= count
            index += 1
        return budget, self.num_preemptions > before

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Get the blocks for `num_tokens`, preempting the last admitted. False if that was `sequence` itself."""
        if num_tokens <= len(sequence.blocks) * self.limits.block_size:
            return True
        missing = self._blocks_for(num_tokens) - len(sequence.blocks)
        while self.pool.num_free < missing:
            victim = self._running.pop()
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.blocks += self.pool.allocate(missing)
        return True

    def _advance(self, sequence: Sequence, count: int, step: Step) -> None:
        """Compute `count` tokens more, and let later sequences find the blocks that are full with them."""
        if sequence.num_computed < sequence.num_prompt or count > 1:
            step.prefill_tokens += count
        else:
            step.decode_context += sequence.num_tokens
        sequence.num_computed += count
        if sequence.num_computed // self.limits.block_size > sequence.num_named:
            self._name_full_blocks(sequence)

    def _admit(self, step: Step, budget: int, now: float) -> None:
        while budget and len(self._running) < self.limits.max_num_seqs:
            sequence = self._landed.popleft() if self._landed else self._take_waiting(now)
            if sequence is None:
                return
            if sequence.state is SequenceState.PULLING:
                continue
            count = min(sequence.num_tokens - sequence.num_computed, budget)
            sequence.state = SequenceState.RUNNING
            self._running.append(sequence)
            self._reserve(sequence, sequence.num_computed + count)
            self._advance(sequence, count, step)
            budget -= count

    def _take_waiting(self, now: float) -> Sequence | None:
        """Take the next of the queue, with the blocks that are cached, if all it needs would fit."""
        found = self._find_next()
        if found is None:
            return None
        sequence, hit = found
        heapq.heappop(self._waiting)
        self.pool.reference(hit)
        sequence.blocks = hit
        sequence.num_named = len(hit)
        sequence.num_computed = len(hit) * self.limits.block_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.num_computed
        sequence.most_cached_tokens = max(sequence.most_cached_tokens, min(sequence.num_computed, sequence.num_prompt))
        if sequence.pull_tokens > sequence.num_computed:
            self._start_pull(sequence, now)
        return sequence

    def _find_next(self) -> tuple[Sequence, list[int]] | None:
        """Return the next of the queue and its cached blocks; None if nobody waits, or what it needs does not fit."""
        while self._waiting and self._waiting[0][2].state is SequenceState.DONE:
            heapq.heappop(self._waiting)
        if not self._waiting:
            return None
        sequence = self._waiting[0][2]
        # The last token is computed in any case: its logits are what the first output token is drawn from.
        hit = self.pool.find(sequence.names[: (sequence.num_tokens - 1) // self.limits.block_size])
        if self.pool.num_free_without(hit) < self._blocks_for(sequence.num_tokens) - len(hit):
            return None
        return sequence, hit

    def _start_pull(self, sequence: Sequence, now: float) -> None:
        """Fetch what the cache lacks. Pulls share one link, one after the other."""
        sequence.pulled_tokens = sequence.pull_tokens - sequence.num_computed
        self._reserve(sequence, sequence.num_tokens)
        self._link_free_at = max(now, self._link_free_at) + self.timing.transfer_s(sequence.pulled_tokens)
        sequence.pull_s = self._link_free_at - now
        sequence.state = SequenceState.PULLING
        heapq.heappush(self._pulls, (self._link_free_at, sequence.order, sequence))

    def _land_pulls(self, now: float) -> None:
        while self._pulls and self._pulls[0][0] <= now:
            sequence = heapq.heappop(self._pulls)[2]
            if sequence.state is SequenceState.PULLING:
                sequence.state = SequenceState.LANDED
                sequence.num_computed = sequence.pull_tokens
                sequence.pull_tokens = 0  # a handle is good for one pull
                self._name_full_blocks(sequence)
                self._landed.append(sequence)

    def _name_full_blocks(self, sequence: Sequence) -> None:
        num_full = sequence.num_computed // self.limits.block_size
        for index in range(sequence.num_named, num_full):
            if index >= len(sequence.names):
                name = sequence.writer.name_block(index)
                if name is None:
                    break
                sequence.names.append(name)
            self.pool.name(sequence.blocks[index], sequence.names[index])
        sequence.num_named = num_full

    def _write(self, step: Step) -> None:
        for sequence in step.emitted:
            sequence.num_tokens += 1
            if sequence.writer.write():
                step.finished.append(sequence)
        for sequence in step.finished:
            self._end(sequence)
        if step.finished:
            self._running = [s for s in self._running if s.state is SequenceState.RUNNING]

    def _preempt(self, sequence: Sequence) -> None:
        self.pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_named = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.state = SequenceState.WAITING
        heapq.heappush(self._waiting, (sequence.priority, sequence.order, sequence))
        self._is_stalled = False

    def _end(self, sequence: Sequence) -> None:
        self.pool.free(sequence.blocks, sequence.reused_tokens // self.limits.block_size)
        if sequence.moves_away:
            self.pool.demote(sequence.names[: sequence.num_named])
        sequence.blocks = []
        sequence.state = SequenceState.DONE
        del self._sequences[sequence.request_id]
        self._is_stalled = False

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.limits.block_size)
