"""Where a grammar goes on for a resumed request. Needs no vLLM: what vLLM says about reasoning is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hpcserve.engine.vllm.grammar import _advance

END = 9  # of reasoning


class Reasoner:
    def is_reasoning_end(self, token_ids: list[int]) -> bool:
        return END in token_ids


class Manager:
    """vLLM's, as far as it is asked: tokens after the end of reasoning are the grammar's."""

    def __init__(self, reasoner: Reasoner | None) -> None:
        self._reasoner = reasoner

    def _get_reasoner(self, request: Any) -> Reasoner | None:
        return self._reasoner

    def _get_constraint_bounds(
        self, request: Any, tokens: list[int], *, spec_tokens_committed: bool
    ) -> tuple[int, int]:
        assert spec_tokens_committed
        if self._reasoner is None or request.structured_output_request.reasoning_ended:
            return 0, 0
        begins_at = tokens.index(END) + 1 if END in tokens else len(tokens) + 1
        return begins_at, begins_at


class Grammar:
    def __init__(self, *, fits: bool = True) -> None:
        self.accepted: list[int] = []
        self._fits = fits

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self.accepted += tokens
        return self._fits


def make_request(prompt: list[int], *, reasoning_ended: bool | None) -> Any:
    state = SimpleNamespace(reasoning_ended=reasoning_ended)
    return SimpleNamespace(request_id="r", prompt_token_ids=prompt, structured_output_request=state)


@pytest.mark.parametrize(
    ("reasoner", "prompt", "ended", "accepted", "ends"),
    [
        (None, [1, 2, 3, 4], None, [3, 4], True),
        (Reasoner(), [1, END, 3, 4], None, [3, 4], True),  # the prompt itself ends the reasoning
        (Reasoner(), [1, 2, END, 4], None, [4], True),  # what was generated does
        (Reasoner(), [1, 2, END, 4], False, [4], True),
        (Reasoner(), [1, 2, 3, 4], False, [], False),  # nothing does yet
        (Reasoner(), [1, 2, 3, 4], True, [3, 4], True),
    ],
)
def test_the_grammar_gets_what_was_generated_after_the_reasoning(
    reasoner: Reasoner | None, prompt: list[int], ended: bool | None, accepted: list[int], ends: bool
) -> None:
    request, grammar = make_request(prompt, reasoning_ended=ended), Grammar()
    _advance(Manager(reasoner), request, grammar, 2)
    assert grammar.accepted == accepted
    assert request.structured_output_request.reasoning_ended is ends


def test_tokens_that_do_not_fit_end_the_request() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        _advance(Manager(None), make_request([1, 2, 3], reasoning_ended=None), Grammar(fits=False), 1)
