"""The output of one request: its tokens, their text, why it ended. The scheduler says when; nothing here knows time."""

from __future__ import annotations

from hpcserve.engine.mock.stop_strings import StopStrings
from hpcserve.engine.mock.tokens import TokenTable
from hpcserve.kv.hashing import extend_hash
from hpcserve.types import BlockHash, EngineOutput, EngineRequest, FinishReason, TokenLogprob

_LOGPROB = -0.1  # of every generated token
_ALTERNATIVE_LOGPROB = -3.0  # of the most likely other token; the next ones are each lower by one


class Generation:
    """A `sequence.Writer` of tokens. `output` is what the last `write` added, without the numbers of cached tokens."""

    def __init__(
        self, request: EngineRequest, names: list[BlockHash], table: TokenTable, block_size: int, max_tokens: int
    ) -> None:
        self.request = request
        self.num_generated = 0
        self.text = ""  # of the last token, as far as it may be shown
        self.token_id = 0
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self._tokens = list(request.token_ids)
        self._names = names  # shared with the sequence, which appends to it
        self._table = table
        self._block_size = block_size
        self._max_tokens = max_tokens
        sampling = request.sampling
        can_stop = not request.prefill_only
        self._stop_ids = frozenset(sampling.stop_token_ids if can_stop else ())
        self._stops = (
            StopStrings(sampling.stop, include_stop=sampling.include_stop) if sampling.stop and can_stop else None
        )
        self._resume(request.num_resumed)

    def write(self) -> bool:
        """Add the next token. Returns whether it was the last."""
        tokens = self._tokens
        index = self._table.pick(tokens[-1], len(tokens))
        self.token_id = token_id = self._table.ids[index]
        self.text = self._table.texts[index]
        tokens.append(token_id)
        self.num_generated += 1
        if self._stops or self._stop_ids:
            self._apply_stops()
        if self.finish_reason is None and self.num_generated >= self._max_tokens:
            self.finish_reason = "length"
            if self._stops:
                self.text += self._stops.flush()
        return self.finish_reason is not None

    def name_block(self, index: int) -> BlockHash | None:
        """Return the hash of a full block that holds generated tokens."""
        start = index * self._block_size
        parent = self._names[index - 1] if index else None
        return extend_hash(parent, self._tokens[start : start + self._block_size], self.request.cache_salt)

    def output(self) -> EngineOutput:
        """Return what the last `write` added."""
        return EngineOutput(
            request_id=self.request.request_id,
            token_ids=(self.token_id,),
            text=self.text,
            logprobs=() if self.request.sampling.logprobs is None else (self._logprob(),),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _resume(self, num_resumed: int) -> None:
        """Hold back what the earlier worker held back: its last tokens may have begun a stop string."""
        if self._stops and num_resumed:
            text_of = self._table.text_of
            self._stops.push("".join(text_of.get(token_id, "") for token_id in self._tokens[-num_resumed:]))

    def _apply_stops(self) -> None:
        may_stop = self.num_generated > self.request.sampling.min_tokens
        if may_stop and self.token_id in self._stop_ids:
            self.finish_reason, self.stop_reason = "stop", self.token_id
            held = self._stops.flush() if self._stops else ""
            self.text = held + (self.text if self.request.sampling.include_stop else "")
        elif self._stops:
            self.text, stop = self._stops.push(self.text, may_stop=may_stop)
            if stop is not None:
                self.finish_reason, self.stop_reason = "stop", stop

    def _logprob(self) -> TokenLogprob:
        table, count = self._table, self.request.sampling.logprobs or 0
        chosen = (self.token_id, table.text_of[self.token_id], _LOGPROB)
        start = table.ids.index(self.token_id) if count > 1 else 0
        others: dict[int, str] = {}
        for offset in range(1, len(table)):
            if len(others) >= count - 1:
                break
            index = (start + offset) % len(table)
            if table.ids[index] != self.token_id:
                others[table.ids[index]] = table.texts[index]
        rest = [(tid, text, _ALTERNATIVE_LOGPROB - rank) for rank, (tid, text) in enumerate(others.items())]
        return TokenLogprob(*chosen, top=(chosen, *rest) if count else ())
