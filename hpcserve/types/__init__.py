"""The values that cross processes. Frozen msgspec structs; no behaviour beyond what can be read off a value."""

from hpcserve.types.generation import (
    ChatParsing,
    EngineOutput,
    EngineRequest,
    KvHandle,
    ParsedDelta,
    Sampling,
    StructuredOutput,
    TokenLogprob,
    ToolCallDelta,
)
from hpcserve.types.ids import BlockHash, FinishReason, RequestId, WorkerId
from hpcserve.types.kv_events import BlocksCleared, BlocksRemoved, BlocksStored, KvEvent, KvEventBatch
from hpcserve.types.routing import Assignment, Caller, RouteRequest
from hpcserve.types.status import Phase, Status
from hpcserve.types.traffic import Traffic
from hpcserve.types.workers import Ability, EndCause, EngineInfo, LoadReport, Role, WorkDone, WorkerInfo, WorkerState

__all__ = [
    "Ability",
    "Assignment",
    "BlockHash",
    "BlocksCleared",
    "BlocksRemoved",
    "BlocksStored",
    "Caller",
    "ChatParsing",
    "EndCause",
    "EngineInfo",
    "EngineOutput",
    "EngineRequest",
    "FinishReason",
    "KvEvent",
    "KvEventBatch",
    "KvHandle",
    "LoadReport",
    "ParsedDelta",
    "Phase",
    "RequestId",
    "Role",
    "RouteRequest",
    "Sampling",
    "Status",
    "StructuredOutput",
    "TokenLogprob",
    "ToolCallDelta",
    "Traffic",
    "WorkDone",
    "WorkerId",
    "WorkerInfo",
    "WorkerState",
]
