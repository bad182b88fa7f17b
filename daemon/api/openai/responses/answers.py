"""Deltas become the events of a response; the last one holds the whole of it.

Items follow each other: each is opened, filled and closed before the next. Calls come last, whatever
is said behind them: a reader who is slow and one who is not shall find the same order.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from backends.types import Delta, ToolCall
from daemon.api.framing import as_daemon_error
from daemon.api.openai.answers import Deltas, Outcome
from daemon.api.openai.errors import error_body, error_code
from daemon.api.openai.responses.objects import (
    ArgumentsDelta,
    ArgumentsDone,
    CallItem,
    ErrorEvent,
    Event,
    IncompleteDetails,
    Item,
    ItemEvent,
    MessageItem,
    OutputText,
    PartEvent,
    ReasoningItem,
    ResponseError,
    ResponseEvent,
    ResponseObject,
    ResponseUsage,
    SummaryDelta,
    SummaryDone,
    SummaryPartEvent,
    SummaryText,
    TextDelta,
    TextDone,
)
from daemon.api.openai.wire import TokenLogprob

_E = TypeVar("_E", bound=Event)
Events = AsyncGenerator[Event, None]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


class ResponseWriter:
    """Makes the events of one response, of which `blank` says all that is known before."""

    def __init__(self, blank: ResponseObject, *, parallel: bool) -> None:
        self._blank = blank
        self._outcome = Outcome(parallel=parallel)
        self._sequence = 0
        self._items: list[Item] = []
        self._open: ReasoningItem | MessageItem | None = None
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        # Of ids whose text is still to come, being part of a character, say.
        self._waiting: list[TokenLogprob] = []

    async def whole(self, deltas: Deltas) -> AsyncGenerator[ResponseObject, None]:
        async with aclosing(self.events(deltas)) as events:
            found = [event async for event in events if isinstance(event, ResponseEvent)]
        yield found[-1].response

    async def stream(self, deltas: Deltas) -> Events:
        """As `events`; what goes wrong once they have begun is the end of them, in two events."""
        async with aclosing(self.events(deltas)) as events:
            try:
                async for event in events:
                    yield event
            except Exception as error:
                if not self._sequence:
                    raise
                for event in self._failed(error):
                    yield event

    async def events(self, deltas: Deltas) -> Events:
        """Raises DaemonError. The first event comes with the first delta: until then it may wait."""
        async with aclosing(deltas):
            async for delta in deltas:
                if not self._sequence:
                    yield self._about("created", self._blank)
                    yield self._about("in_progress", self._blank)
                for event in self._take(self._outcome.take(delta)):
                    yield event
        for event in (*self._close(self._end_status()), *self._calls()):
            yield event
        yield self._about(self._end_status(), self._ended())

    # ---- events ----

    def _event(self, kind: type[_E], name: str, /, **fields: Any) -> _E:
        event = kind(type=f"response.{name}", sequence_number=self._sequence, **fields)
        self._sequence += 1
        return event

    def _within(self, kind: type[_E], name: str, item: Item, /, **fields: Any) -> _E:
        return self._event(kind, name, item_id=item.id, output_index=len(self._items), **fields)

    def _about(self, name: str, response: ResponseObject) -> ResponseEvent:
        return self._event(ResponseEvent, name, response=response)

    def _added(self, item: Item) -> ItemEvent:
        return self._event(ItemEvent, "output_item.added", output_index=len(self._items), item=item)

    def _done(self, item: Item) -> ItemEvent:
        index = len(self._items)
        self._items.append(item)
        return self._event(ItemEvent, "output_item.done", output_index=index, item=item)

    # ---- items ----

    def _take(self, delta: Delta) -> Iterator[Event]:
        self._waiting += map(TokenLogprob.of, delta.logprobs)
        if delta.thinking:
            yield from self._think(delta.thinking)
        if delta.text:
            logprobs, self._waiting = tuple(self._waiting), []
            yield from self._say(delta.text, logprobs)

    def _think(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, ReasoningItem):
            yield from self._close("completed")
            self._open = item = ReasoningItem(id=new_id("rs"))
            yield self._added(item)
            part = SummaryText(text="")
            yield self._within(SummaryPartEvent, "reasoning_summary_part.added", item, part=part)
        self._text.append(text)
        yield self._within(SummaryDelta, "reasoning_summary_text.delta", self._open, delta=text)

    def _say(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> Iterator[Event]:
        if not isinstance(self._open, MessageItem):
            yield from self._close("completed")
            self._open = item = MessageItem(id=new_id("msg"))
            yield self._added(item)
            yield self._within(PartEvent, "content_part.added", item, part=OutputText())
        self._text.append(text)
        self._logprobs += logprobs
        yield self._within(
            TextDelta, "output_text.delta", self._open, delta=text, logprobs=logprobs
        )

    def _close(self, status: str) -> Iterator[Event]:
        """Ends the open item, if there is one."""
        self._waiting.clear()
        item, self._open = self._open, None
        text, self._text = "".join(self._text), []
        match item:
            case ReasoningItem():
                yield from self._end_thoughts(item, SummaryText(text=text))
            case MessageItem():
                logprobs, self._logprobs = tuple(self._logprobs), []
                yield from self._end_message(item, OutputText(text=text, logprobs=logprobs), status)
            case None:
                pass

    def _end_thoughts(self, item: ReasoningItem, part: SummaryText) -> Iterator[Event]:
        yield self._within(SummaryDone, "reasoning_summary_text.done", item, text=part.text)
        yield self._within(SummaryPartEvent, "reasoning_summary_part.done", item, part=part)
        yield self._done(
            msgspec.structs.replace(item, summary=(part,), encrypted_content=part.text)
        )

    def _end_message(self, item: MessageItem, part: OutputText, status: str) -> Iterator[Event]:
        said = {"text": part.text, "logprobs": part.logprobs}
        yield self._within(TextDone, "output_text.done", item, **said)
        yield self._within(PartEvent, "content_part.done", item, part=part)
        yield self._done(msgspec.structs.replace(item, status=status, content=(part,)))

    def _calls(self) -> Iterator[Event]:
        for call in self._outcome.calls:
            yield from self._call(call)

    def _call(self, call: ToolCall) -> Iterator[Event]:
        arguments = call.arguments.decode()
        call_id = call.id or new_id("call")
        item = CallItem(id=new_id("fc"), call_id=call_id, name=call.name)
        yield self._added(item)
        yield self._within(ArgumentsDelta, "function_call_arguments.delta", item, delta=arguments)
        said = {"name": call.name, "arguments": arguments}
        yield self._within(ArgumentsDone, "function_call_arguments.done", item, **said)
        yield self._done(msgspec.structs.replace(item, status="completed", arguments=arguments))

    # ---- the end ----

    def _end_status(self) -> str:
        return "incomplete" if self._outcome.finish == "length" else "completed"

    def _ended(self) -> ResponseObject:
        status = self._end_status()
        is_cut = status == "incomplete"
        return msgspec.structs.replace(
            self._blank,
            status=status,
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            output=tuple(self._items),
            usage=ResponseUsage.of(self._outcome.usage),
        )

    def _failed(self, cause: Exception) -> Iterator[Event]:
        error = as_daemon_error(cause)
        code = error_code(error) or "server_error"
        response = msgspec.structs.replace(
            self._blank,
            status="failed",
            error=ResponseError(code=code, message=error.message),
            output=tuple(self._items),
        )
        yield self._about("failed", response)
        yield ErrorEvent(
            type="error",
            sequence_number=self._sequence,
            code=code,
            message=error.message,
            error=error_body(error).error,
        )
