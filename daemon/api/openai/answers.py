"""Deltas become chat completions and text completions, streamed in chunks or whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from backends.types import Delta, Logprob, ToolCall, Usage
from daemon.api.openai.wire import (
    Answer,
    AnswerFunction,
    AnswerMessage,
    AnswerToolCall,
    ChatChoice,
    ChoiceLogprobs,
    ChunkChoice,
    DebugInfo,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    WireUsage,
)

Deltas = AsyncGenerator[Delta, None]
_FINGERPRINT = "fp_ollama"


class Outcome:
    """What an answer comes to beside its text. Without `parallel` only its first call counts."""

    def __init__(self, *, parallel: bool = True) -> None:
        self._parallel = parallel
        self.calls: list[ToolCall] = []
        self.usage = Usage()
        self.finish = "stop"

    def take(self, delta: Delta) -> Delta:
        """`delta` without what does not count."""
        if not self._parallel:
            left = delta.tool_calls[: 0 if self.calls else 1]
            delta = msgspec.structs.replace(delta, tool_calls=left)
        self.calls += delta.tool_calls
        self.usage = delta.usage or self.usage
        self.finish = delta.finish or self.finish
        return delta

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.calls and self.finish == "stop" else self.finish


async def _gathered(deltas: Deltas, outcome: Outcome) -> Delta:
    """All that an answer says, as one delta; its end and calls are in `outcome`."""
    async with aclosing(deltas):
        pieces = [outcome.take(delta) async for delta in deltas]
    return Delta(
        request_id="",
        text="".join(piece.text for piece in pieces),
        thinking="".join(piece.thinking for piece in pieces),
        logprobs=tuple(one for piece in pieces for one in piece.logprobs),
    )


class _Writer:
    """Makes the objects of one answer. `model` is echoed as the client sent it."""

    def __init__(self, model: str, prefix: str, kinds: tuple[str, str]) -> None:
        self._model = model
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._whole_kind, self._chunk_kind = kinds

    def _answer(self, kind: str, choices: tuple[Any, ...], **fields: Any) -> Answer:
        return Answer(
            id=self._id,
            object=kind,
            created=self._created,
            model=self._model,
            system_fingerprint=_FINGERPRINT,
            choices=choices,
            **fields,
        )

    def chunk(self, *choices: Any, **fields: Any) -> Answer:
        return self._answer(self._chunk_kind, choices, **fields)

    def completed(self, choice: Any, usage: Usage) -> Answer:
        return self._answer(self._whole_kind, (choice,), usage=WireUsage.of(usage))

    def rendered(self, prompt: str, images: int) -> Answer:
        """The answer to `_debug_render_only`."""
        info = DebugInfo(rendered_template=prompt, image_count=images)
        return self._answer(self._whole_kind, (), debug_info=info)


class ChatWriter(_Writer):
    def __init__(self, model: str, *, parallel: bool, include_usage: bool) -> None:
        super().__init__(model, "chatcmpl", ("chat.completion", "chat.completion.chunk"))
        self._parallel = parallel
        self._include_usage = include_usage
        self._has_begun = False

    async def whole(self, deltas: Deltas) -> AsyncGenerator[Answer, None]:
        outcome = Outcome(parallel=self._parallel)
        said = await _gathered(deltas, outcome)
        message = AnswerMessage(
            role="assistant",
            content=said.text,
            reasoning=said.thinking or UNSET,
            tool_calls=tuple(map(_tool_call, outcome.calls)) or UNSET,
        )
        choice = ChatChoice(
            message=message,
            finish_reason=outcome.finish_reason,
            logprobs=_logprobs(said.logprobs),
        )
        yield self.completed(choice, outcome.usage)

    async def chunks(self, deltas: Deltas) -> AsyncGenerator[Answer, None]:
        outcome = Outcome(parallel=self._parallel)
        async with aclosing(deltas):
            async for delta in deltas:
                for chunk in self._pieces(outcome.take(delta)):
                    yield chunk
        if not self._has_begun:
            yield self._piece(content="")
        end = ChunkChoice(delta=AnswerMessage(), finish_reason=outcome.finish_reason)
        yield self.chunk(end)
        if self._include_usage:
            yield self.chunk(usage=WireUsage.of(outcome.usage))

    def _pieces(self, delta: Delta) -> Iterator[Answer]:
        """Thoughts come in a chunk of their own, before the text."""
        logprobs = _logprobs(delta.logprobs)
        if delta.thinking:
            yield self._piece(logprobs, content="", reasoning=delta.thinking)
            logprobs = UNSET
        if delta.text or delta.tool_calls or logprobs is not UNSET:
            calls = tuple(map(_tool_call, delta.tool_calls)) or UNSET
            yield self._piece(logprobs, content=delta.text, tool_calls=calls)

    def _piece(self, logprobs: ChoiceLogprobs | UnsetType = UNSET, **fields: Any) -> Answer:
        role = UNSET if self._has_begun else "assistant"
        self._has_begun = True
        message = AnswerMessage(role=role, **fields)
        return self.chunk(ChunkChoice(delta=message, finish_reason=None, logprobs=logprobs))


class TextWriter(_Writer):
    """Thoughts are left out: this route has no place for them."""

    def __init__(self, model: str, *, include_usage: bool) -> None:
        super().__init__(model, "cmpl", ("text_completion", "text_completion"))
        self._include_usage = include_usage
        self._length = 0

    def loaded(self) -> Answer:
        """The answer to no prompt at all, which only loads the model."""
        return self.completed(TextChoice(text="", finish_reason="load"), Usage())

    async def whole(self, deltas: Deltas) -> AsyncGenerator[Answer, None]:
        outcome = Outcome()
        said = await _gathered(deltas, outcome)
        choice = TextChoice(
            text=said.text,
            finish_reason=outcome.finish,
            logprobs=self._text_logprobs(said.logprobs),
        )
        yield self.completed(choice, outcome.usage)

    async def chunks(self, deltas: Deltas) -> AsyncGenerator[Answer, None]:
        """The last piece of text has the reason why it is the last."""
        usage = Usage()
        other = {"usage": None} if self._include_usage else {}
        async with aclosing(deltas):
            async for delta in deltas:
                usage = delta.usage or usage
                if delta.text or delta.logprobs or delta.finish:
                    logprobs = self._text_logprobs(delta.logprobs)
                    yield self.chunk(
                        TextChoice(text=delta.text, finish_reason=delta.finish, logprobs=logprobs),
                        **other,
                    )
        if self._include_usage:
            yield self.chunk(usage=WireUsage.of(usage))

    def _text_logprobs(self, logprobs: Iterable[Logprob]) -> TextLogprobs | UnsetType:
        entries = list(logprobs)
        if not entries:
            return UNSET
        offsets: list[int] = []
        for one in entries:
            offsets.append(self._length)
            self._length += len(one.token)
        top = tuple({other.token: other.logprob for other in one.top} for one in entries)
        return TextLogprobs(
            tokens=tuple(one.token for one in entries),
            token_logprobs=tuple(one.logprob for one in entries),
            top_logprobs=top if any(top) else None,
            text_offset=tuple(offsets),
        )


def _tool_call(call: ToolCall) -> AnswerToolCall:
    """An id for calls that have none: the client answers to it."""
    return AnswerToolCall(
        id=call.id or f"call_{uuid.uuid4().hex[:8]}",
        index=call.index,
        type="function",
        function=AnswerFunction(name=call.name, arguments=call.arguments.decode()),
    )


def _logprobs(logprobs: Iterable[Logprob]) -> ChoiceLogprobs | UnsetType:
    content = tuple(map(TokenLogprob.of, logprobs))
    return ChoiceLogprobs(content=content) if content else UNSET
