"""What the events of streamed chats and text completions have around their choices, as OpenAI writes it."""

from __future__ import annotations

import msgspec

from hpcserve.frontend.generation import Job
from hpcserve.frontend.replies import SYSTEM_FINGERPRINT, Usage
from hpcserve.frontend.streaming import DONE, event
from hpcserve.types import FinishReason

_encode = msgspec.json.encode
_FINGERPRINT = b',"system_fingerprint":' + _encode(SYSTEM_FINGERPRINT)


class ChunkEnvelope:
    """The envelope of one job's events; `kind` is their `object`."""

    def __init__(self, job: Job, kind: str) -> None:
        self._include_usage = job.include_usage
        self._fields: dict[str, object] = {
            "id": job.request_id,
            "object": kind,
            "created": job.created,
            "model": job.model,
            "choices": [],
        }
        self.head = event(self._fields)[: -len(b"]}\n\n")]

    def around(self, choice: dict[str, object], usage: bytes, finish_reason: FinishReason | None) -> bytes:
        """Return the event with one choice. `usage` is the member that says the usage so far, or nothing."""
        is_last_word = finish_reason is not None and not self._include_usage
        return self.head + _encode(choice) + b"]" + usage + (_FINGERPRINT if is_last_word else b"") + b"}\n\n"

    def ending(self, usage: Usage) -> bytes:
        """Return the event with the usage and no choices, where it was asked for, and the last one."""
        if not self._include_usage:
            return DONE
        return event({**self._fields, "usage": usage, "system_fingerprint": SYSTEM_FINGERPRINT}) + DONE
