"""What things are called."""

from __future__ import annotations

from typing import Literal, NewType

WorkerId = NewType("WorkerId", str)
"""Names one life of one node agent: `<pool>-<index>-<incarnation>`, e.g. `decode-3-a91f`. Never used twice."""
RequestId = NewType("RequestId", str)
BlockHash = NewType("BlockHash", int)
"""Unsigned 64 bits: the chained hash of all tokens up to the end of a KV block (see `kv.hashing`)."""

FinishReason = Literal["stop", "length", "abort", "error"]
