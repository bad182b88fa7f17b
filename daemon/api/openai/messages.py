"""Messages as this dialect writes them become the field's own: contract.md §11.2. Pure.

A message stays one message however many parts its content has. Texts of refusals are the contract's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from backends.types import Message, ToolCall
from daemon.api.images import Parts, read_image
from daemon.api.openai.wire import ContentPart, WireMessage, WireToolCall
from daemon.errors import Invalid, NotYet

# What a developer says outranks the user, as the system's text does; most templates know only that.
ROLES = {"developer": "system"}
# No line break stands beside an image: chat templates put images straight into the text.
TEXT_SEPARATOR = "\n"
_IMAGE_URL = re.compile(r"data:(?:image/(?:jpeg|jpg|png|webp))?;base64,")


def read_messages(sent: tuple[WireMessage, ...]) -> tuple[Message, ...]:
    """Tool messages without a name get that of the call they answer. Raises Invalid, NotYet."""
    names: dict[str, str] = {}
    found: list[Message] = []
    for message in sent:
        names |= {call.id: call.function.name for call in message.tool_calls}
        found.append(_message(message, names))
    return tuple(found)


def _message(message: WireMessage, names: Mapping[str, str]) -> Message:
    role = message.role.lower()
    parts = _content(message)
    return Message(
        role=ROLES.get(role, role),
        content=parts.text,
        images=parts.images,
        image_places=parts.places,
        thinking=message.reasoning or message.reasoning_content,
        tool_calls=tuple(tool_call(call, i) for i, call in enumerate(message.tool_calls)),
        tool_name=(message.name or names.get(message.tool_call_id, "")) if role == "tool" else "",
        tool_call_id=message.tool_call_id,
    )


def _content(message: WireMessage) -> Parts:
    content = message.content
    if content is None and not message.tool_calls:
        raise Invalid("invalid message content type: <nil>")
    if content is None or isinstance(content, str):
        return parts_of_text(content or "")
    return _read_parts(content)


def parts_of_text(text: str) -> Parts:
    parts = Parts(TEXT_SEPARATOR)
    parts.add_text(text)
    return parts


def _read_parts(sent: Iterable[ContentPart]) -> Parts:
    """Raises Invalid, NotYet."""
    parts = Parts(TEXT_SEPARATOR)
    for part in sent:
        match part.type:
            case "text":
                parts.add_text(part.text)
            case "refusal":
                parts.add_text(part.refusal)
            case "image_url":
                parts.add_image(read_image_url(part.image_url))
            case "input_audio":
                raise NotYet('not supported by this version yet: "input_audio"')
            case _:
                raise Invalid("invalid message format")
    return parts


def read_image_url(value: Any) -> bytes:
    """`value` is a data URI, or an object with one as `url`. Raises Invalid, NotYet."""
    url = cast("dict[str, Any]", value).get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise Invalid("invalid image input")
    if url.startswith(("http://", "https://")):
        raise Invalid(
            "image URLs are not currently supported, please use base64 encoded data instead"
        )
    found = _IMAGE_URL.match(url)
    if not found:
        raise Invalid("invalid image input")
    try:
        return read_image(url[found.end() :])
    except Invalid as error:
        raise Invalid("invalid image input") from error


def tool_call(call: WireToolCall, index: int) -> ToolCall:
    """Raises Invalid for arguments that are no JSON object; no text at all stands for none."""
    return ToolCall(
        id=call.id,
        name=call.function.name,
        arguments=read_arguments(call.function.arguments),
        index=index,
    )


def read_arguments(arguments: Any) -> bytes:
    """Raises Invalid."""
    try:
        text = arguments.strip() or "{}"
        if isinstance(msgspec.json.decode(text), dict):
            return text.encode()
    except (AttributeError, UnicodeError, msgspec.DecodeError, RecursionError):
        pass
    raise Invalid("invalid tool call arguments")
