"""Deltas become the objects of `/api/generate` and `/api/chat`, streamed or merged into one.

The two routes differ in where the text stands and in nothing else, so `Writer` is what differs.
"""

from __future__ import annotations

import random
import string
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import msgspec

from backends.types import Delta, Logprob, ToolCall, Usage
from daemon.api.framing import timestamp
from daemon.api.ollama.wire import (
    Answer,
    AnswerMessage,
    ChatAnswer,
    DebugInfo,
    GenerateAnswer,
    TokenLogprob,
    TopLogprob,
    WireFunction,
    WireToolCall,
)

_A = TypeVar("_A", bound=Answer)
_ID_LETTERS = string.ascii_lowercase + string.digits


class Timing:
    """When a request came in and when its model was ready; ns of the monotonic clock."""

    def __init__(self) -> None:
        self._started_ns = time.monotonic_ns()
        self._ready_ns = self._started_ns

    def ready(self) -> None:
        self._ready_ns = time.monotonic_ns()

    def metrics(self, usage: Usage) -> dict[str, int]:
        """Each at least 1 where something happened: clients take 0 for absent."""
        return {
            **self.durations(),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_dropped_count": usage.dropped_tokens,
            "prompt_eval_duration": max(1, usage.prefill_ns),
            "eval_count": usage.completion_tokens,
            "eval_forced_count": usage.forced_tokens,
            "eval_duration": max(1, usage.decode_ns),
        }

    def durations(self) -> dict[str, int]:
        return {
            "total_duration": max(1, time.monotonic_ns() - self._started_ns),
            "load_duration": max(1, self._ready_ns - self._started_ns),
        }


def wire_logprob(logprob: Logprob) -> TokenLogprob:
    top = tuple(
        TopLogprob(token=one.token, logprob=one.logprob, bytes=tuple(one.data))
        for one in logprob.top
    )
    return TokenLogprob(
        token=logprob.token, logprob=logprob.logprob, bytes=tuple(logprob.data), top_logprobs=top
    )


def _wire_tool_call(call: ToolCall) -> WireToolCall:
    call_id = call.id or "call_" + "".join(random.choices(_ID_LETTERS, k=8))
    arguments: dict[str, Any] = msgspec.json.decode(call.arguments)
    function = WireFunction(name=call.name, arguments=arguments, index=call.index)
    return WireToolCall(id=call_id, function=function)


class Writer(Generic[_A]):
    """Makes the answers of one request. `model` is echoed as the client sent it."""

    def __init__(self, model: str, timing: Timing) -> None:
        self._model = model
        self._timing = timing

    def _common(self, *, done: bool, **fields: Any) -> dict[str, Any]:
        return {"model": self._model, "created_at": timestamp(), "done": done, **fields}

    def piece(self, delta: Delta) -> _A:
        """What `delta` adds to the answer."""
        raise NotImplementedError

    def bare(self, reason: str) -> _A:
        """The answer to loading or unloading: no text, no metrics."""
        raise NotImplementedError

    def rendered(self, prompt: str, images: int) -> _A:
        """The answer to `_debug_render_only`."""
        raise NotImplementedError

    def final(self, delta: Delta) -> _A:
        """The last object; `delta` is the one with `finish`."""
        raise NotImplementedError

    def merged(self, answers: list[_A]) -> _A:
        """All pieces and the final object as one."""
        raise NotImplementedError

    def _final_fields(self, delta: Delta) -> dict[str, Any]:
        metrics = self._timing.metrics(delta.usage or Usage())
        return self._common(done=True, done_reason=delta.finish or "stop", **metrics)


class GenerateWriter(Writer[GenerateAnswer]):
    def piece(self, delta: Delta) -> GenerateAnswer:
        return GenerateAnswer(
            **self._common(done=False),
            response=delta.text,
            thinking=delta.thinking,
            logprobs=tuple(map(wire_logprob, delta.logprobs)),
        )

    def bare(self, reason: str) -> GenerateAnswer:
        return GenerateAnswer(**self._common(done=True), response="", done_reason=reason)

    def rendered(self, prompt: str, images: int) -> GenerateAnswer:
        info = DebugInfo(rendered_template=prompt, image_count=images)
        return GenerateAnswer(**self._common(done=False), response="", debug_info=info)

    def final(self, delta: Delta) -> GenerateAnswer:
        return GenerateAnswer(**self._final_fields(delta), response="", context=delta.context_ids)

    def merged(self, answers: list[GenerateAnswer]) -> GenerateAnswer:
        return msgspec.structs.replace(
            answers[-1],
            response="".join(answer.response for answer in answers),
            thinking="".join(answer.thinking for answer in answers),
            logprobs=tuple(one for answer in answers for one in answer.logprobs),
        )


class ChatWriter(Writer[ChatAnswer]):
    def piece(self, delta: Delta) -> ChatAnswer:
        message = AnswerMessage(
            role="assistant",
            content=delta.text,
            thinking=delta.thinking,
            tool_calls=tuple(map(_wire_tool_call, delta.tool_calls)),
        )
        logprobs = tuple(map(wire_logprob, delta.logprobs))
        return ChatAnswer(**self._common(done=False), message=message, logprobs=logprobs)

    def bare(self, reason: str) -> ChatAnswer:
        return ChatAnswer(**self._common(done=True), message=_empty(), done_reason=reason)

    def rendered(self, prompt: str, images: int) -> ChatAnswer:
        info = DebugInfo(rendered_template=prompt, image_count=images)
        return ChatAnswer(**self._common(done=False), message=_empty(""), debug_info=info)

    def final(self, delta: Delta) -> ChatAnswer:
        return ChatAnswer(**self._final_fields(delta), message=_empty())

    def merged(self, answers: list[ChatAnswer]) -> ChatAnswer:
        message = AnswerMessage(
            role=answers[-1].message.role,
            content="".join(answer.message.content for answer in answers),
            thinking="".join(answer.message.thinking for answer in answers),
            tool_calls=tuple(call for answer in answers for call in answer.message.tool_calls),
        )
        logprobs = tuple(one for answer in answers for one in answer.logprobs)
        return msgspec.structs.replace(answers[-1], message=message, logprobs=logprobs)


def _empty(role: str = "assistant") -> AnswerMessage:
    return AnswerMessage(role=role, content="")


def _parts(delta: Delta) -> list[Delta]:
    """What a client is sent for `delta`: tool calls come in an object of their own."""
    calls, rest = delta.tool_calls, msgspec.structs.replace(delta, tool_calls=())
    says_more = rest.text or rest.thinking or rest.logprobs
    parts = [rest] if says_more else []
    if calls:
        parts.append(Delta(request_id=delta.request_id, tool_calls=calls))
    return parts


async def written(
    deltas: AsyncGenerator[Delta, None], writer: Writer[_A]
) -> AsyncGenerator[_A, None]:
    """The answers for `deltas`, which are closed with it."""
    async with aclosing(deltas):
        async for delta in deltas:
            for part in _parts(delta):
                yield writer.piece(part)
            if delta.finish and delta.finish != "cancelled":
                yield writer.final(delta)
