"""Has the grammar of a structured output go on where an earlier worker left it.

A request that is resumed here has what was generated so far in its prompt, and vLLM 0.32 begins every grammar at its
start. So vLLM's method that makes a grammar is wrapped, in the process of the engine core: it feeds the resumed tokens
to the new grammar, from the first one on that the grammar applies to. How many they are comes with the request.
"""

from __future__ import annotations

from typing import Any

RESUMES = "HPCSERVE_RESUMES_REQUESTS"
"""Environment variable, set where an engine of ours runs: requests go on there, see here and `resumed_sampling`."""
RESUMED = "hpcserve_resumed_tokens"
"""Among the extra arguments of a request: how many of the last prompt tokens were generated."""


def num_resumed(params: Any) -> int:
    """Return how many of the last prompt tokens were generated, by `SamplingParams`; None stands for pooling."""
    return 0 if params is None else (params.extra_args or {}).get(RESUMED, 0)


def resume_grammars() -> str | None:
    """Wrap vLLM's method, once. Returns why that is not possible; imports vLLM."""
    try:
        from vllm.v1.structured_output import StructuredOutputManager as Manager

        make, _ = Manager._create_grammar, Manager._get_constraint_bounds
    except (ImportError, AttributeError) as err:
        return f"this vLLM makes its grammars in another way ({err})"
    if hasattr(make, "__wrapped__"):
        return None

    def make_and_advance(self: Any, request: Any) -> Any:
        grammar = make(self, request)
        num = num_resumed(request.sampling_params)
        if num:
            _advance(self, request, grammar, num)
        return grammar

    make_and_advance.__wrapped__ = make  # type: ignore[attr-defined]
    Manager._create_grammar = make_and_advance
    return None


def _advance(manager: Any, request: Any, grammar: Any, num: int) -> None:
    """Feed the resumed tokens to `grammar`. Raises `ValueError`, which ends the request, if they do not fit it."""
    prompt, resumed = request.prompt_token_ids[:-num], request.prompt_token_ids[-num:]
    state = request.structured_output_request
    reasoner = manager._get_reasoner(request)
    if state.reasoning_ended is None and reasoner is not None:
        state.reasoning_ended = reasoner.is_reasoning_end(prompt)  # by itself vLLM would look at all of the prompt
    begins_at, _ = manager._get_constraint_bounds(request, resumed, spec_tokens_committed=True)
    if begins_at > len(resumed):
        return  # still reasoning
    state.reasoning_ended = True
    if not grammar.accept_tokens(request.request_id, resumed[begins_at:]):
        raise ValueError("what was generated before does not fit the structured output that is asked for")
