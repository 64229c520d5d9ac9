"""What engines without KV events probably hold, guessed from what was placed on them. It chooses nobody.

The blocks of a prompt count as held from when it is placed, not from when it is computed: who asks wants to know what
will be there when its own turn comes, and what was placed before it is computed before it. They are forgotten when
nobody has asked for them for a while, or when more is placed than the engine has room for: of the prompt that was
placed longest ago, as far as no later one has the same blocks, the last blocks first. What is generated takes room that
nobody counts here, so the guess errs on the side of too much. A wrong one costs a miss: the engine computes the prompt.

It writes to the `PrefixIndex` that events write to, so look-ups are the same. A worker is fed by the one or the other.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import count
from sys import maxsize

from hpcserve.router.index import PrefixIndex
from hpcserve.types import BlockHash, WorkerId


@dataclass(slots=True)
class _Guess:
    """Of one worker. A prompt has a number, which grows with time."""

    capacity: int  # blocks
    prompts: dict[int, list[BlockHash]] = field(default_factory=dict)  # oldest first
    latest: dict[BlockHash, int] = field(default_factory=dict)  # the latest prompt that has the block

    def blocks_of(self, number: int) -> list[BlockHash]:
        """Return those blocks of a prompt that no later one has, in order."""
        latest = self.latest
        return [block for block in self.prompts[number] if latest.get(block) == number]


class ApproximateIndex:
    """Guesses for some workers. Times are those of the caller's clock, in seconds, and do not fall."""

    def __init__(self, index: PrefixIndex, ttl_s: float) -> None:
        self._index = index
        self._ttl_s = ttl_s
        self._guesses: dict[WorkerId, _Guess] = {}
        self._numbers = count()
        self._order: deque[tuple[float, WorkerId, int]] = deque()  # when each prompt expires; also of forgotten ones

    def __contains__(self, worker: WorkerId) -> bool:
        """Return whether the blocks of `worker` are guessed here."""
        return worker in self._guesses

    def open(self, worker: WorkerId, capacity: int) -> None:
        """Guess from now on what `worker` holds: at most `capacity` blocks. One that is guessed already stays.

        A capacity of nothing or less makes no sense, and bounds nothing.
        """
        self._guesses.setdefault(worker, _Guess(capacity if capacity > 0 else maxsize))

    def close(self, worker: WorkerId) -> None:
        """Guess no more. The caller drops the worker from the index."""
        self._guesses.pop(worker, None)

    def placed(self, worker: WorkerId, hashes: list[BlockHash], now: float) -> None:
        """A prompt of these full blocks will be computed on, or pulled to, `worker`. Others' workers are ignored.

        `hashes` is kept, and must not be changed.
        """
        guess = self._guesses.get(worker)
        if guess is None or not hashes:
            return
        number = next(self._numbers)
        guess.prompts[number] = hashes
        guess.latest.update(dict.fromkeys(hashes, number))
        self._order.append((now + self._ttl_s, worker, number))
        self._index.store(worker, hashes)
        while len(guess.latest) > guess.capacity:
            self._shrink(worker, guess)

    def expire(self, now: float) -> None:
        """Forget prompts that were placed too long ago. Costs what it forgets."""
        order = self._order
        while order and order[0][0] <= now:
            _, worker, number = order.popleft()
            guess = self._guesses.get(worker)
            if guess is not None and number in guess.prompts:
                self._forget(worker, guess, guess.blocks_of(number))
                del guess.prompts[number]

    def _shrink(self, worker: WorkerId, guess: _Guess) -> None:
        """Forget the oldest prompt, or as much of its end as there is too much."""
        oldest = next(iter(guess.prompts))
        blocks = guess.blocks_of(oldest)
        excess = len(guess.latest) - guess.capacity
        self._forget(worker, guess, blocks[-excess:])
        if excess >= len(blocks):
            del guess.prompts[oldest]

    def _forget(self, worker: WorkerId, guess: _Guess, blocks: list[BlockHash]) -> None:
        for block in blocks:
            guess.latest.pop(block, None)
        self._index.remove(worker, blocks)
