"""What `/v1/responses` reads, as Structs: contract.md §11.6. Items and parts are checked by hand."""

from __future__ import annotations

from typing import Any

import msgspec

from daemon.api.openai.wire import Reasoning


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Echoed as it was understood."""

    type: str = "text"
    name: str = ""
    schema: dict[str, Any] | None = None

    def echo(self) -> dict[str, Any]:
        return {"type": self.type} | msgspec.to_builtins(self)


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    format: TextFormat = TextFormat()
    verbosity: Any = None


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    type: str = ""
    text: str = ""
    refusal: str = ""
    image_url: Any = None


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """All kinds of items in one: which fields count depends on `type`."""

    type: str = ""
    role: str = ""
    content: str | tuple[ContentPart, ...] = ""
    call_id: str = ""
    name: str = ""
    arguments: Any = ""
    output: str | tuple[ContentPart, ...] = ""
    encrypted_content: str = ""
    summary: tuple[ContentPart, ...] = ()


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The last lines are what is refused, and what is only named in a header."""

    model: str = ""
    input: str | tuple[InputItem, ...] = ()
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    reasoning: Reasoning = Reasoning()
    text: TextOptions = TextOptions()
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    truncation: str | None = None
    top_logprobs: int = 0
    include: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    background: bool = False
    conversation: Any = None
    previous_response_id: Any = None
    prompt: Any = None
    store: bool = False
    max_tool_calls: int | None = None
