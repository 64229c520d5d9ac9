"""The events of a streamed completion, with the fields of vLLM's server in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hpcserve.errors import HpcserveError
from hpcserve.frontend.chunk_envelope import ChunkEnvelope
from hpcserve.frontend.generation import Job
from hpcserve.frontend.logprobs import completion_logprobs
from hpcserve.frontend.replies import CompletionLogprobs, Usage
from hpcserve.frontend.schemas import CompletionBody
from hpcserve.frontend.streaming import failure_event
from hpcserve.types import EngineOutput

_encode = msgspec.json.encode


class CompletionChunks:
    """The events of one streamed completion."""

    def __init__(self, job: Job, body: CompletionBody, echoes: Sequence[str]) -> None:
        """`echoes` are what the choices begin with: their prompts, or nothing."""
        self._job = job
        self._num_top = body.logprobs
        self._names_ids = body.return_tokens_as_token_ids
        self._gives_ids = body.return_token_ids
        self._counts = body.stream_options is not None and body.stream_options.continuous_usage_stats
        self._shows_prompt = body.echo or body.return_token_ids
        self._echoes = echoes
        self._has_begun = [False] * len(job.requests)
        self._num_tokens = [0] * len(job.requests)
        self._offsets = [0] * len(job.requests)  # where the next token with logprobs starts in its text
        self._envelope = ChunkEnvelope(job, "text_completion")
        self._head = self._envelope.head

    def preamble(self) -> bytes:
        """Return nothing: an echoed prompt comes together with the first text."""
        return b""

    def text_chunk(self, index: int) -> tuple[bytes, bytes] | None:
        """Return the parts around the text of a delta; None where the delta says more than text."""
        if self._shows_prompt or self._counts:
            return None
        reasons = b',"logprobs":null,"finish_reason":null,"stop_reason":null'
        tail = reasons + b',"prompt_token_ids":null,"token_ids":null}]}\n\n'
        return self._head + b'{"index":%d,"text":' % index, tail

    def chunk(self, index: int, output: EngineOutput) -> bytes:
        """Return the event of a delta with more than text."""
        is_first = not self._has_begun[index]
        self._has_begun[index] = True
        self._num_tokens[index] += len(output.token_ids)
        prompt = self._job.requests[index].token_ids
        choice: dict[str, Any] = {
            "index": index,
            "text": self._echoes[index] + output.text if is_first else output.text,
            "logprobs": self._logprobs(index, output),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
            "prompt_token_ids": prompt if is_first and self._shows_prompt else None,
            "token_ids": output.token_ids if self._gives_ids else None,
        }
        usage = b""
        if self._counts:
            num_tokens = self._num_tokens[index]
            usage = b',"usage":' + _encode(Usage(len(prompt), len(prompt) + num_tokens, num_tokens))
        return self._envelope.around(choice, usage, output.finish_reason)

    def ending(self, usage: Usage) -> bytes:
        """Return the event with the usage and no choices, where it was asked for, and the last one."""
        return self._envelope.ending(usage)

    def failure(self, error: HpcserveError) -> bytes:
        """Return OpenAI's event for an error."""
        return failure_event(error)

    def _logprobs(self, index: int, output: EngineOutput) -> CompletionLogprobs | None:
        if self._num_top is None:
            return None
        logprobs = completion_logprobs(output.logprobs, self._num_top, self._offsets[index], self._names_ids)
        self._offsets[index] += sum(len(each) for each in logprobs.tokens)
        return logprobs
