"""What /v1/batches takes."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from hpcserve.frontend.files.schemas import Expiry
from hpcserve.frontend.schemas import Body

_WINDOW = re.compile(r"([1-9][0-9]{0,2})h")
_MOST_METADATA = 16
_MAX_KEY_CHARS, _MAX_VALUE_CHARS = 64, 512

BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]


def _window(value: str) -> str:
    if not _WINDOW.fullmatch(value):
        raise ValueError("must be a number of hours such as '24h'")
    return value


def _metadata(value: dict[str, str]) -> dict[str, str]:
    if len(value) > _MOST_METADATA:
        raise ValueError(f"must have at most {_MOST_METADATA} keys")
    if any(len(key) > _MAX_KEY_CHARS or len(each) > _MAX_VALUE_CHARS for key, each in value.items()):
        raise ValueError(f"must have keys of at most {_MAX_KEY_CHARS} characters, and values of {_MAX_VALUE_CHARS}")
    return value


_METADATA_SCHEMA = {
    "type": "object",
    "maxProperties": _MOST_METADATA,
    "propertyNames": {"maxLength": _MAX_KEY_CHARS},
    "additionalProperties": {"type": "string", "maxLength": _MAX_VALUE_CHARS},
}


class BatchBody(Body):
    """A new batch."""

    input_file_id: str
    endpoint: BatchEndpoint
    completion_window: Annotated[
        str, AfterValidator(_window), WithJsonSchema({"type": "string", "pattern": f"^{_WINDOW.pattern}$"})
    ]
    metadata: Annotated[dict[str, str], AfterValidator(_metadata), WithJsonSchema(_METADATA_SCHEMA)] | None = None
    output_expires_after: Expiry | None = None

    @property
    def window_s(self) -> int:
        """The completion window in seconds."""
        return int(self.completion_window[:-1]) * 3600


class ListBatchesQuery(Body):
    """Which page of the batches, the newest first."""

    after: str | None = Field(None, description="id of the last batch of the page before")
    limit: int = Field(20, ge=1, le=100)
