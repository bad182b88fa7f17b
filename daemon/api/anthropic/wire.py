"""What `/v1/messages` reads and writes, as Structs: contract.md §11.8.

Requests give every field a default, because what is missing is refused with the field's own texts.
Answers carry every field that the official clients declare, empty ones too.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Of an image or a document. `data` is base64, or the text itself where `type` is "text".

    What an image's `media_type` says does not count: its content does.
    """

    type: str = ""
    data: str = ""
    content: Any = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One content block of a request; which fields say something depends on `type`.

    `source` and `content` have other forms in blocks of other types, so they are read when the type
    is known.
    """

    type: str = ""
    text: str = ""
    thinking: str = ""
    source: Any = None
    title: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}
    tool_use_id: str = ""
    content: Any = None


class WireMessage(msgspec.Struct, frozen=True, kw_only=True):
    """`content` None: not sent. Roles are compared without regard to letter case."""

    role: str = ""
    content: str | tuple[Block, ...] | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """`type` empty or "custom": a tool of the client's own; others are Anthropic's."""

    type: str = ""
    name: str = ""
    description: str = ""
    input_schema: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    name: str = ""
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    budget_tokens: int | None = None
    display: str = ""


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    effort: str = ""
    format: OutputFormat | None = None


class CountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt is made of. `output_format` is where beta clients still put the format."""

    model: str = ""
    system: str | tuple[Block, ...] = ""
    messages: tuple[WireMessage, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    metadata: Any = None
    service_tier: Any = None
    container: Any = None
    context_management: Any = None
    mcp_servers: tuple[Any, ...] = ()


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    max_tokens: int = 0
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: tuple[str, ...] = ()


class TokenCount(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int


# ---- answers ----

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class WireUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`input_tokens` are those that had to be computed; the cache's come on top."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    """The signature is always empty: nothing here checks one. Clients declare it as required."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, frozen=True, kw_only=True, tag="tool_use"):
    """`input` is a JSON object, its key order kept."""

    id: str
    name: str
    input: msgspec.Raw


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: tuple[AnswerBlock, ...] = ()
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: WireUsage


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: AnswerMessage


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: AnswerBlock


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    thinking: str


class InputDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | InputDelta


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class Ending(msgspec.Struct, frozen=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    delta: Ending
    usage: WireUsage


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    pass


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Says that the connection lives while a long prompt is read."""


StreamEvent = (
    MessageStart
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | Ping
    | AnswerMessage
)


class ErrorDetail(msgspec.Struct, frozen=True):
    type: str
    message: str


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="error"):
    error: ErrorDetail
    request_id: str
