"""The items of a streamed response while they grow. Each knows its own events, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from hpcserve.frontend.replies import ChosenToken
from hpcserve.frontend.responses import event_replies as events
from hpcserve.frontend.responses.answer import item_id, message_item, reasoning_item
from hpcserve.frontend.responses.replies import (
    ItemStatus,
    OutputFunctionCall,
    OutputItem,
    OutputText,
    ReasoningContent,
)

_encode = msgspec.json.Encoder().encode


class OpenItem(Protocol):
    """An item that began and has not ended."""

    def begin(self) -> bytes:
        """Return the events that precede its content."""
        ...

    def end(self, status: ItemStatus) -> bytes:
        """Return the events that follow its content."""
        ...

    def item(self, status: ItemStatus) -> OutputItem:
        """Return it as it is now."""
        ...


class OpenMessage:
    """Text of the answer."""

    def __init__(self, index: int, numbers: Iterator[int]) -> None:
        """`index` is its place in the output; `numbers` are those of the events."""
        self._index = index
        self._numbers = numbers
        self._id = item_id("msg")
        self._texts: list[str] = []
        self._logprobs: list[ChosenToken] = []
        self._after_number = b',"content_index":0,"item_id":"%b","output_index":%d,"delta":' % (
            self._id.encode(),
            index,
        )

    def begin(self) -> bytes:
        """Return the events that precede the text."""
        item = message_item(self._id, [], "in_progress")
        part = OutputText(annotations=[], text="", logprobs=[])
        added = events.OutputItemAdded(sequence_number=next(self._numbers), item=item, output_index=self._index)
        return encoded(added) + self._part_added(part)

    def add(self, text: str, logprobs: list[ChosenToken]) -> bytes:
        """Return the event for more text. Called for every token: it is put together by hand."""
        self._texts.append(text)
        self._logprobs += logprobs
        return (
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d%b%b'
            b',"logprobs":%b}\n\n'
            % (next(self._numbers), self._after_number, _encode(text), _streamed(logprobs) if logprobs else b"[]")
        )

    def end(self, status: ItemStatus) -> bytes:
        """Return the events that follow the text."""
        done = events.OutputTextDone(
            sequence_number=next(self._numbers),
            content_index=0,
            item_id=self._id,
            output_index=self._index,
            logprobs=[],
            text="".join(self._texts),
        )
        part = events.ContentPartDone(
            sequence_number=next(self._numbers),
            content_index=0,
            item_id=self._id,
            output_index=self._index,
            part=self._part(),
        )
        return encoded(done) + encoded(part) + _item_done(self, status, self._index, self._numbers)

    def item(self, status: ItemStatus) -> OutputItem:
        """Return the message so far."""
        return message_item(self._id, [self._part()], status)

    def _part(self) -> OutputText:
        return OutputText(annotations=[], text="".join(self._texts), logprobs=self._logprobs or None)

    def _part_added(self, part: OutputText) -> bytes:
        return encoded(
            events.ContentPartAdded(
                sequence_number=next(self._numbers),
                content_index=0,
                item_id=self._id,
                output_index=self._index,
                part=part,
            )
        )


class OpenReasoning:
    """What the model thinks."""

    def __init__(self, index: int, numbers: Iterator[int]) -> None:
        """`index` is its place in the output; `numbers` are those of the events."""
        self._index = index
        self._numbers = numbers
        self._id = item_id("rs")
        self._texts: list[str] = []

    def begin(self) -> bytes:
        """Return the events that precede the text."""
        item = reasoning_item(self._id, None, "in_progress")
        added = events.OutputItemAdded(sequence_number=next(self._numbers), item=item, output_index=self._index)
        part = events.ContentPartAdded(
            sequence_number=next(self._numbers),
            content_index=0,
            item_id=self._id,
            output_index=self._index,
            part=ReasoningContent(""),
        )
        return encoded(added) + encoded(part)

    def add(self, text: str) -> bytes:
        """Return the event for more text."""
        self._texts.append(text)
        return encoded(
            events.ReasoningTextDelta(
                sequence_number=next(self._numbers),
                content_index=0,
                item_id=self._id,
                output_index=self._index,
                delta=text,
            )
        )

    def end(self, status: ItemStatus) -> bytes:
        """Return the events that follow the text."""
        text = "".join(self._texts)
        done = events.ReasoningTextDone(
            sequence_number=next(self._numbers),
            content_index=0,
            item_id=self._id,
            output_index=self._index,
            text=text,
        )
        part = events.ContentPartDone(
            sequence_number=next(self._numbers),
            content_index=0,
            item_id=self._id,
            output_index=self._index,
            part=ReasoningContent(text),
        )
        return encoded(done) + encoded(part) + _item_done(self, status, self._index, self._numbers)

    def item(self, status: ItemStatus) -> OutputItem:
        """Return the reasoning so far."""
        return reasoning_item(self._id, "".join(self._texts), status)


class OpenCall:
    """A call of a function."""

    def __init__(self, index: int, numbers: Iterator[int], call_id: str, name: str) -> None:
        """`index` is its place in the output; `numbers` are those of the events."""
        self._index = index
        self._numbers = numbers
        self._id = item_id("fc")
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def begin(self) -> bytes:
        """Return the event that precedes the arguments."""
        item = self.item("in_progress")
        added = events.OutputItemAdded(sequence_number=next(self._numbers), item=item, output_index=self._index)
        return encoded(added)

    def add(self, arguments: str) -> bytes:
        """Return the event for more of the arguments."""
        self._arguments.append(arguments)
        return encoded(
            events.FunctionArgumentsDelta(
                sequence_number=next(self._numbers), delta=arguments, item_id=self._id, output_index=self._index
            )
        )

    def end(self, status: ItemStatus) -> bytes:
        """Return the events that follow the arguments."""
        done = events.FunctionArgumentsDone(
            sequence_number=next(self._numbers),
            arguments="".join(self._arguments),
            item_id=self._id,
            name=self._name,
            output_index=self._index,
        )
        return encoded(done) + _item_done(self, status, self._index, self._numbers)

    def item(self, status: ItemStatus) -> OutputItem:
        """Return the call so far."""
        return OutputFunctionCall(
            arguments="".join(self._arguments), call_id=self._call_id, name=self._name, id=self._id, status=status
        )


def encoded(event: events.ResponseEvent) -> bytes:
    """Return an event as it is sent."""
    name = event.__struct_config__.tag
    assert isinstance(name, str)
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(event))


def _item_done(item: OpenItem, status: ItemStatus, index: int, numbers: Iterator[int]) -> bytes:
    whole = item.item(status)
    return encoded(events.OutputItemDone(sequence_number=next(numbers), item=whole, output_index=index))


def _streamed(tokens: list[ChosenToken]) -> bytes:
    streamed = [
        events.StreamedToken(
            token.token,
            token.logprob,
            [events.StreamedAlternative(each.token, each.logprob) for each in token.top_logprobs],
        )
        for token in tokens
    ]
    return _encode(streamed)
