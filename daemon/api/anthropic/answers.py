"""Deltas become the events of a streamed message; a whole message is made of the same events.

Thoughts, text and calls of tools are blocks in the order in which the model made them. A block
that would begin with white space waits for more: between two calls there is often nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing
from typing import Literal

import msgspec

from backends.types import Delta, Progress, ToolCall, Usage
from daemon.api.anthropic.errors import new_id
from daemon.api.anthropic.wire import (
    AnswerBlock,
    AnswerMessage,
    BlockDelta,
    BlockStart,
    BlockStop,
    Ending,
    InputDelta,
    MessageDelta,
    MessageStart,
    MessageStop,
    Ping,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    WireUsage,
)
from daemon.errors import Cancelled


def _wire_usage(*, prompt: int, cached: int, output: int) -> WireUsage:
    return WireUsage(
        input_tokens=max(0, prompt - cached), cache_read_input_tokens=cached, output_tokens=output
    )


class MessageWriter:
    """Makes the events of one answer. `model` is echoed as the client sent it.

    `stop_sequences` are the client's: only meeting one of those is a reason to name it. With
    `calls_once` the first call counts and others do not.
    """

    def __init__(
        self,
        model: str,
        *,
        stop_sequences: Collection[str] = (),
        hides_thinking: bool = False,
        calls_once: bool = False,
    ) -> None:
        self._model = model
        self._stops = stop_sequences
        self._hides_thinking = hides_thinking
        self._calls_once = calls_once
        self._has_started = False
        self._has_called = False
        self._index = -1
        self._open: Literal["", "text", "thinking"] = ""
        self._held = ""

    def progress(self, progress: Progress) -> Iterator[StreamEvent]:
        """The prompt's length is known as soon as the model reads it; then the message starts."""
        if self._has_started:
            yield Ping()
        else:
            usage = _wire_usage(prompt=progress.total, cached=progress.cached, output=0)
            yield self._start(usage)

    def delta(self, delta: Delta) -> Iterator[StreamEvent]:
        """What `delta` adds; with its `finish` also the end of the message."""
        if not self._has_started:
            usage = delta.usage or Usage()
            prompt, cached = usage.prompt_tokens, usage.cached_tokens
            yield self._start(_wire_usage(prompt=prompt, cached=cached, output=0))
        if delta.thinking:
            yield from self._think(delta.thinking)
        if delta.text:
            yield from self._say(delta.text)
        for call in delta.tool_calls:
            yield from self._call(call)
        if delta.finish:
            yield from self._finish(delta)

    def _start(self, usage: WireUsage) -> MessageStart:
        self._has_started = True
        return MessageStart(AnswerMessage(id=new_id("msg"), model=self._model, usage=usage))

    def _think(self, thinking: str) -> Iterator[StreamEvent]:
        if self._open != "thinking":
            yield from self._begin(ThinkingBlock(""))
            self._open = "thinking"
        if not self._hides_thinking:
            yield BlockDelta(self._index, ThinkingDelta(thinking))

    def _say(self, text: str) -> Iterator[StreamEvent]:
        if self._open != "text":
            self._held += text
            if self._held.isspace():
                return
            text = self._held
            yield from self._begin(TextBlock(""))
            self._open = "text"
        yield BlockDelta(self._index, TextDelta(text))

    def _call(self, call: ToolCall) -> Iterator[StreamEvent]:
        if self._has_called and self._calls_once:
            return
        self._has_called = True
        block = ToolUseBlock(id=new_id("toolu"), name=call.name, input=msgspec.Raw(b"{}"))
        yield from self._begin(block)
        yield BlockDelta(self._index, InputDelta(call.arguments.decode()))
        yield BlockStop(self._index)

    def _begin(self, block: AnswerBlock) -> Iterator[StreamEvent]:
        yield from self._close()
        self._held = ""
        self._index += 1
        yield BlockStart(self._index, block)

    def _close(self) -> Iterator[StreamEvent]:
        if self._open:
            self._open = ""
            yield BlockStop(self._index)

    def _finish(self, delta: Delta) -> Iterator[StreamEvent]:
        if self._held and self._index < 0:  # white space is all there is
            held = self._held
            yield from self._begin(TextBlock(""))
            yield BlockDelta(self._index, TextDelta(held))
            self._open = "text"
        yield from self._close()
        usage = delta.usage or Usage()
        counted = _wire_usage(
            prompt=usage.prompt_tokens, cached=usage.cached_tokens, output=usage.completion_tokens
        )
        yield MessageDelta(self._ending(delta), counted)
        yield MessageStop()

    def _ending(self, delta: Delta) -> Ending:
        if self._has_called:
            return Ending("tool_use", None)
        if delta.stop_text and delta.stop_text in self._stops:
            return Ending("stop_sequence", delta.stop_text)
        return Ending("max_tokens" if delta.finish == "length" else "end_turn", None)


async def written(
    answers: AsyncGenerator[Delta | Progress, None], writer: MessageWriter
) -> AsyncGenerator[StreamEvent, None]:
    """The events for `answers`, which are closed with it. Raises Cancelled when they were cut off."""
    async with aclosing(answers):
        async for answer in answers:
            if isinstance(answer, Progress):
                pieces = writer.progress(answer)
            elif answer.finish == "cancelled":
                raise Cancelled
            else:
                pieces = writer.delta(answer)
            for event in pieces:
                yield event


def whole_message(events: Sequence[StreamEvent]) -> AnswerMessage:
    """The message that these events, complete, tell piece by piece."""
    message: AnswerMessage | None = None
    blocks: list[AnswerBlock] = []
    texts: list[list[str]] = []
    for event in events:
        match event:
            case MessageStart(message=started):
                message = started
            case BlockStart(content_block=block):
                blocks.append(block)
                texts.append([])
            case BlockDelta(index=index, delta=delta):
                texts[index].append(_delta_text(delta))
            case MessageDelta(delta=ending, usage=usage):
                assert message is not None
                message = msgspec.structs.replace(
                    message,
                    stop_reason=ending.stop_reason,
                    stop_sequence=ending.stop_sequence,
                    usage=usage,
                )
            case _:
                pass
    assert message is not None
    content = tuple(
        _filled(block, "".join(text)) for block, text in zip(blocks, texts, strict=True)
    )
    return msgspec.structs.replace(message, content=content)


def _delta_text(delta: TextDelta | ThinkingDelta | InputDelta) -> str:
    match delta:
        case TextDelta(text=text) | ThinkingDelta(thinking=text) | InputDelta(partial_json=text):
            return text


def _filled(block: AnswerBlock, text: str) -> AnswerBlock:
    match block:
        case TextBlock():
            return TextBlock(text)
        case ThinkingBlock():
            return ThinkingBlock(text)
        case ToolUseBlock():
            return msgspec.structs.replace(block, input=msgspec.Raw(text.encode()))
