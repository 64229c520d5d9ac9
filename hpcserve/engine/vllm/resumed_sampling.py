"""Has sampling go on where an earlier worker left it: penalties, bad words and the seed's random stream.

A request that is resumed here has what was generated so far in its prompt. vLLM 0.32 counts presence and frequency
penalties and looks for bad words in what it generated itself, and begins a seed's stream anew. So three methods of its
model runner V1 are wrapped, in the process that computes. The runner V2 (GPUs with Triton) derives its noise from seed
and position, so seeds go on there by themselves; its penalties and bad words begin anew. So they do with speculation.
What is mended on the way: on CPUs a seeded request ended the engine where its prompt took more than one step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hpcserve.engine.vllm.grammar import num_resumed

_TOKENS = "hpcserve_resumed_tokens"  # attribute of vLLM's batch, by request id; and of its metadata, by row


def continue_sampling() -> str | None:
    """Wrap vLLM's methods, once. Returns why that is not possible; imports vLLM."""
    try:
        from vllm.v1.sample.sampler import Sampler
        from vllm.v1.worker.gpu_input_batch import InputBatch

        add, describe, apply = (
            InputBatch.add_request,
            InputBatch._make_sampling_metadata,
            Sampler.apply_logits_processors,
        )
    except (ImportError, AttributeError) as err:
        return f"this vLLM samples in another way ({err})"
    if hasattr(add, "__wrapped__"):
        return None

    def add_and_advance(self: Any, request: Any) -> Any:
        num = num_resumed(request.sampling_params)
        if num:
            self.__dict__.setdefault(_TOKENS, {})[request.req_id] = request.prompt_token_ids[-num:]
        if request.generator is not None and not hasattr(request, _TOKENS):
            request.generator = _go_on(request, num, self.vocab_size)
        setattr(request, _TOKENS, num)  # it may be added again, after it was preempted
        return add(self, request)

    def describe_with_resumed(self: Any) -> Any:
        metadata = describe(self)
        known = self.__dict__.get(_TOKENS)
        if known:
            rows = {
                self.req_id_to_index[name]: tokens for name, tokens in known.items() if name in self.req_id_to_index
            }
            setattr(self, _TOKENS, {name: tokens for name, tokens in known.items() if name in self.req_id_to_index})
            setattr(metadata, _TOKENS, rows)
        return metadata

    def apply_with_resumed(self: Any, logits: Any, metadata: Any, predict_bonus_token: bool) -> Any:
        rows = getattr(metadata, _TOKENS, None)
        if rows and metadata.output_token_ids:
            whole = [rows.get(row, []) + tokens for row, tokens in enumerate(metadata.output_token_ids)]
            metadata = dataclasses.replace(metadata, output_token_ids=whole)
        return apply(self, logits, metadata, predict_bonus_token)

    add_and_advance.__wrapped__ = add  # type: ignore[attr-defined]
    InputBatch.add_request = add_and_advance
    InputBatch._make_sampling_metadata = describe_with_resumed
    Sampler.apply_logits_processors = apply_with_resumed
    return None


def _go_on(request: Any, num: int, vocab_size: int) -> Any:
    """Return the generator of a request from which `num` tokens were drawn elsewhere."""
    generator = request.generator
    if generator.device.type == "cpu":
        return _rewinding(request, num)
    import torch

    before = generator.get_offset()
    torch.empty(vocab_size, device=generator.device).exponential_(generator=generator)
    a_token = generator.get_offset() - before
    generator.set_offset(before + num * a_token)
    return generator


def _rewinding(request: Any, num: int) -> Any:
    """Return a generator for CPUs that can take the last draw back.

    The model runner V1 does so, by the offset, where it has sampled for a prompt that is computed in part only. CPU
    generators have no offset: the error ends the engine. Sampling on CPUs draws one integer a token.
    """
    import torch

    class Rewinding(torch.Generator):  # type: ignore[misc]
        def get_offset(self) -> int:
            return 0

        def set_offset(self, offset: int) -> Any:
            self.manual_seed(request.sampling_params.seed)
            self._draw(num + len(request.output_token_ids))
            return self

        def _draw(self, count: int) -> None:
            torch.randint(0, 2**31, (count,), generator=self, dtype=torch.long)

    generator = Rewinding()
    generator.set_offset(0)
    return generator
