"""What `/v1/responses` answers: the response object, its items, and the events of a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from backends.types import Usage
from daemon.api.openai.wire import CompletionTokens, PromptTokens, TokenLogprob


class SummaryText(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "summary_text"
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True):
    """`encrypted_content` is the plain text again: clients send it back, and some nothing else."""

    id: str
    type: str = "reasoning"
    summary: tuple[SummaryText, ...] = ()
    encrypted_content: str = ""


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "output_text"
    text: str = ""
    annotations: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class MessageItem(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "message"
    status: str = "in_progress"
    role: str = "assistant"
    content: tuple[OutputText, ...] = ()


class CallItem(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "function_call"
    status: str = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


Item = ReasoningItem | MessageItem | CallItem


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: PromptTokens
    output_tokens: int
    output_tokens_details: CompletionTokens
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=PromptTokens(
                cached_tokens=usage.cached_tokens, dropped_tokens=usage.dropped_tokens
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=CompletionTokens(reasoning_tokens=usage.thinking_tokens),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class ResponseError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    reason: str


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds of Unix time. `temperature` and `top_p` are those that were used."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str = "in_progress"
    incomplete_details: IncompleteDetails | None = None
    model: str
    previous_response_id: None = None
    instructions: str | None
    output: tuple[Item, ...] = ()
    error: ResponseError | None = None
    tools: tuple[dict[str, Any], ...]
    tool_choice: Any
    truncation: str
    parallel_tool_calls: bool
    text: dict[str, Any]
    top_p: float
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int
    temperature: float
    reasoning: dict[str, str | None]
    usage: ResponseUsage | None = None
    max_output_tokens: int | None
    max_tool_calls: None = None
    store: bool = False
    background: bool = False
    service_tier: str = "default"
    metadata: dict[str, Any]
    safety_identifier: None = None
    prompt_cache_key: None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    sequence_number: int


class ResponseEvent(Event, frozen=True, kw_only=True):
    """Begin and end of a response: created, in_progress, completed, incomplete, failed."""

    response: ResponseObject


class ItemEvent(Event, frozen=True, kw_only=True):
    output_index: int
    item: Item


class _WithinItem(Event, frozen=True, kw_only=True):
    item_id: str
    output_index: int


class PartEvent(_WithinItem, frozen=True, kw_only=True):
    content_index: int = 0
    part: OutputText


class TextDelta(_WithinItem, frozen=True, kw_only=True):
    content_index: int = 0
    delta: str
    logprobs: tuple[TokenLogprob, ...]


class TextDone(_WithinItem, frozen=True, kw_only=True):
    content_index: int = 0
    text: str
    logprobs: tuple[TokenLogprob, ...]


class SummaryPartEvent(_WithinItem, frozen=True, kw_only=True):
    summary_index: int = 0
    part: SummaryText


class SummaryDelta(_WithinItem, frozen=True, kw_only=True):
    summary_index: int = 0
    delta: str


class SummaryDone(_WithinItem, frozen=True, kw_only=True):
    summary_index: int = 0
    text: str


class ArgumentsDelta(_WithinItem, frozen=True, kw_only=True):
    delta: str


class ArgumentsDone(_WithinItem, frozen=True, kw_only=True):
    name: str
    arguments: str


class ErrorEvent(Event, frozen=True, kw_only=True):
    """The last event of a stream that broke. `error` is the shape of the other routes."""

    code: str | None
    message: str
    param: None = None
    error: Any
