"""The events of a streamed response; the description of the API is made from these.

`sequence_number` counts them from 0, `output_index` the items of the output, `content_index` the parts of an item.
"""

from __future__ import annotations

from hpcserve.frontend.replies import Reply
from hpcserve.frontend.responses.replies import OutputItem, OutputText, ReasoningContent, Response


class ResponseEvent(Reply, frozen=True, kw_only=True):
    """What all events have."""

    sequence_number: int


class ResponseCreated(ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.created"):
    """The first event."""

    response: Response


class ResponseInProgress(ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.in_progress"):
    """The second event."""

    response: Response


class ResponseCompleted(ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.completed"):
    """The last event of a response that is complete."""

    response: Response


class ResponseIncomplete(ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.incomplete"):
    """The last event of a response that ran out of tokens."""

    response: Response


class ResponseFailed(ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.failed"):
    """The last event of a response that failed after its first token."""

    response: Response


class OutputItemAdded(ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.output_item.added"):
    """An item begins, without its content."""

    item: OutputItem
    output_index: int


class OutputItemDone(ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.output_item.done"):
    """An item is whole."""

    item: OutputItem
    output_index: int


class PartEvent(ResponseEvent, frozen=True, kw_only=True):
    """What events about one part of an item have."""

    content_index: int
    item_id: str
    output_index: int


class ContentPartAdded(PartEvent, frozen=True, kw_only=True, tag_field="type", tag="response.content_part.added"):
    """A part begins, without its text."""

    part: OutputText | ReasoningContent


class ContentPartDone(PartEvent, frozen=True, kw_only=True, tag_field="type", tag="response.content_part.done"):
    """A part is whole."""

    part: OutputText | ReasoningContent


class StreamedAlternative(Reply, frozen=True):
    """A token that could have been chosen."""

    token: str
    logprob: float


class StreamedToken(Reply, frozen=True):
    """A token that was generated."""

    token: str
    logprob: float
    top_logprobs: list[StreamedAlternative]


class OutputTextDelta(PartEvent, frozen=True, kw_only=True, tag_field="type", tag="response.output_text.delta"):
    """More text."""

    delta: str
    logprobs: list[StreamedToken]


class OutputTextDone(PartEvent, frozen=True, kw_only=True, tag_field="type", tag="response.output_text.done"):
    """The text is whole. The log probabilities came with the deltas."""

    logprobs: list[StreamedToken]
    text: str


class ReasoningTextDelta(PartEvent, frozen=True, kw_only=True, tag_field="type", tag="response.reasoning_text.delta"):
    """More of what the model thinks."""

    delta: str


class ReasoningTextDone(PartEvent, frozen=True, kw_only=True, tag_field="type", tag="response.reasoning_text.done"):
    """The thought is whole."""

    text: str


class FunctionArgumentsDelta(
    ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.function_call_arguments.delta"
):
    """More of the JSON text of a function's arguments."""

    delta: str
    item_id: str
    output_index: int


class FunctionArgumentsDone(
    ResponseEvent, frozen=True, kw_only=True, tag_field="type", tag="response.function_call_arguments.done"
):
    """The arguments are whole."""

    arguments: str
    item_id: str
    name: str
    output_index: int


EVENTS = (
    ResponseCreated,
    ResponseInProgress,
    OutputItemAdded,
    ContentPartAdded,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    FunctionArgumentsDelta,
    FunctionArgumentsDone,
    ContentPartDone,
    OutputItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    ResponseFailed,
)
