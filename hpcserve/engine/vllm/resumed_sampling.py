"""Has sampling go on where an earlier worker left it: penalties, bad words and the seed's random stream.

A request that is resumed here has what was generated so far in its prompt. vLLM 0.32 counts presence and frequency
penalties and looks for bad words in what it generated itself, and begins a seed's stream anew. So three methods of its
model runner V1 are wrapped, in the process that computes. The runner V2 (GPUs with Triton) derives its noise from seed
and position, so seeds go on there by themselves; its penalties and bad words begin anew. So they do with speculation.
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
                _advance(request.generator, num, self.vocab_size)
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


def _advance(generator: Any, num_tokens: int, vocab_size: int) -> None:
    """Draw what the earlier worker drew for its tokens."""
    import torch

    if generator.device.type == "cpu":
        torch.randint(0, 2**31, (num_tokens,), generator=generator, dtype=torch.long)
        return
    before = generator.get_offset()
    torch.empty(vocab_size, device=generator.device).exponential_(generator=generator)
    a_token = generator.get_offset() - before
    generator.set_offset(before + num_tokens * a_token)
