"""Conditional disaggregation: which prompts are worth a prefill worker."""

from __future__ import annotations


def prefills_locally(uncached_tokens: int, min_remote_prefill_tokens: int) -> bool:
    """Return whether the decode worker had better compute the prompt itself.

    A remote prefill costs a queue, a transfer of the whole prompt's KV and a second engine's step. Where the decode
    worker has to compute fewer than `min_remote_prefill_tokens` tokens of the prompt, that is not worth it.
    """
    return uncached_tokens < min_remote_prefill_tokens
