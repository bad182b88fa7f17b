"""Items of a request become a conversation: contract.md §11.6. Pure.

What came out as several items (thoughts, a message, calls) goes back in as the one assistant message
that it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from backends.types import Message, ToolCall
from daemon.api.images import Parts
from daemon.api.openai.messages import (
    ROLES,
    TEXT_SEPARATOR,
    parts_of_text,
    read_arguments,
    read_image_url,
)
from daemon.api.openai.reading import ChatWish, check_top_logprobs, read_effort, schema_text
from daemon.api.openai.responses.wire import ContentPart, InputItem, ResponsesRequest, TextFormat
from daemon.api.openai.tools import read_tools
from daemon.errors import Invalid

_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (_LOGPROBS, "reasoning.encrypted_content")
_NOTHING_IS_STORED = (
    "is not supported: responses are not stored here; send the whole conversation as \"input\""
)  # fmt: skip
# Tools that OpenAI's service runs by itself. Agents offer them to every model, so these are left out
# rather than refused; a choice that requires one is refused.
_SERVICES_OWN = ("web_search", "image_generation")
_TEXTS = ("input_text", "output_text", "summary_text", "reasoning_text", "text")


def read_request(data: ResponsesRequest) -> ChatWish:
    """Raises Invalid for what cannot be understood or honoured."""
    _refuse_what_needs_a_store(data)
    check_top_logprobs(data.top_logprobs)
    return ChatWish(
        messages=read_input(data),
        tools=read_tools(flat_tools(data.tools), data.tool_choice, data.parallel_tool_calls),
        think=read_effort(data.reasoning.effort),
        format=read_format(data.text.format),
        logprobs=data.top_logprobs > 0 or _LOGPROBS in data.include,
        top_logprobs=data.top_logprobs,
        truncate=data.truncation == "auto",
    )


def ignored_names(data: ResponsesRequest) -> list[str]:
    """What is said and has no meaning here."""
    fields = {
        "max_tool_calls": data.max_tool_calls,
        "text.verbosity": data.text.verbosity,
        "store": data.store,
    }
    names = [name for name, value in fields.items() if value]
    kinds = [str(tool.get("type")) for tool in data.tools]
    names += [f"tools[{kind}]" for kind in kinds if kind.startswith(_SERVICES_OWN)]
    return names + [f"include[{name}]" for name in data.include if name not in _INCLUDED]


def _refuse_what_needs_a_store(data: ResponsesRequest) -> None:
    stored = ("previous_response_id", "conversation", "prompt", "background")
    for name in stored:
        if getattr(data, name):
            raise Invalid(f'"{name}" {_NOTHING_IS_STORED}')
    if data.truncation not in (None, "auto", "disabled"):
        raise Invalid('"truncation" must be "auto" or "disabled"')


def read_format(wanted: TextFormat) -> bytes | None:
    """Raises Invalid."""
    match wanted.type:
        case "text":
            return None
        case "json_object":
            return b'"json"'
        case "json_schema":
            return schema_text(wanted.schema)
        case _:
            raise Invalid(f'text.format of type "{wanted.type}" is not supported')


def flat_tools(tools: Iterable[dict[str, Any]], prefix: str = "") -> list[dict[str, Any]]:
    """In the form of chat completions; members of a namespace are called `namespace.member`."""
    found: list[dict[str, Any]] = []
    for tool in tools:
        match tool.get("type"):
            case "function":
                function = {key: value for key, value in tool.items() if key != "type"}
                name = function.get("name")
                function["name"] = f"{prefix}{name}" if isinstance(name, str) and name else name
                found.append({"type": "function", "function": function})
            case "namespace" if not prefix and isinstance(tool.get("tools"), list):
                found += flat_tools(tool["tools"], f"{tool.get('name')}.")
            case str(kind) if kind.startswith(_SERVICES_OWN):
                pass  # named in the header
            case _:
                raise Invalid(f'tools of type "{tool.get("type")}" are not supported')
    return found


def read_input(data: ResponsesRequest) -> tuple[Message, ...]:
    """The instructions lead as a system message. Raises Invalid, NotYet."""
    turns = _Turns()
    if data.instructions:
        turns.messages.append(Message(role="system", content=data.instructions))
    if isinstance(data.input, str):
        turns.messages.append(Message(role="user", content=data.input))
    else:
        for i, item in enumerate(data.input):
            turns.take(item, f"input[{i}]")
    if not any(message.role != "system" for message in turns.messages):
        raise Invalid('"input" is required')
    return tuple(turns.messages)


class _Turns:
    """The conversation so far; thoughts wait for the assistant message that they belong to."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._thoughts: list[str] = []
        self._names: dict[str, str] = {}

    def take(self, item: InputItem, where: str) -> None:
        match item.type:
            case "message" | "" if item.role:
                self._take_message(item, where)
            case "reasoning":
                thought = item.encrypted_content or _texts(item.summary)
                self._thoughts += [thought] if thought else []
            case "function_call":
                self._take_call(item)
            case "function_call_output":
                self._take_output(item, where)
            case "web_search_call":
                pass
            case _:
                raise Invalid(f'{where}: unknown input item type: "{item.type}"')

    def _take_message(self, item: InputItem, where: str) -> None:
        role = ROLES.get(item.role.lower(), item.role.lower())
        parts = _content(item.content, where)
        if role != "assistant":
            self.messages.append(_message(role, parts))
            return
        if parts.images:
            raise Invalid(f"{where}: an assistant message cannot have images")
        last = self.messages[-1] if self.messages else None
        if last is not None and last.tool_calls:
            self._change_last(content="\n".join(filter(None, (last.content, parts.text))))
        else:
            self.messages.append(self._assistant(content=parts.text))

    def _take_call(self, item: InputItem) -> None:
        self._names[item.call_id] = item.name
        if not self.messages or self.messages[-1].role != "assistant":
            self.messages.append(self._assistant())
        calls = self.messages[-1].tool_calls
        call = ToolCall(
            id=item.call_id,
            name=item.name,
            arguments=read_arguments(item.arguments),
            index=len(calls),
        )
        self._change_last(tool_calls=(*calls, call))

    def _take_output(self, item: InputItem, where: str) -> None:
        name = self._names.get(item.call_id, "")
        parts = _content(item.output, where)
        self.messages.append(_message("tool", parts, tool_call_id=item.call_id, tool_name=name))

    def _assistant(self, content: str = "") -> Message:
        thoughts, self._thoughts = "\n".join(self._thoughts), []
        return Message(role="assistant", content=content, thinking=thoughts)

    def _change_last(self, **changes: Any) -> None:
        """Thoughts that came between belong to the same message."""
        last = self.messages[-1]
        thoughts, self._thoughts = "\n".join(filter(None, (last.thinking, *self._thoughts))), []
        self.messages[-1] = msgspec.structs.replace(last, thinking=thoughts, **changes)


def _texts(parts: Iterable[ContentPart]) -> str:
    return "\n".join(part.text for part in parts)


def _message(role: str, parts: Parts, *, tool_call_id: str = "", tool_name: str = "") -> Message:
    return Message(
        role=role,
        content=parts.text,
        images=parts.images,
        image_places=parts.places,
        tool_call_id=tool_call_id,
        tool_name=tool_name,
    )


def _content(content: str | tuple[ContentPart, ...], where: str) -> Parts:
    """Raises Invalid, NotYet."""
    if isinstance(content, str):
        return parts_of_text(content)
    parts = Parts(TEXT_SEPARATOR)
    for j, part in enumerate(content):
        if part.type in _TEXTS:
            parts.add_text(part.text)
        elif part.type == "refusal":
            parts.add_text(part.refusal)
        elif part.type == "input_image":
            parts.add_image(read_image_url(part.image_url))
        elif part.type == "input_file":
            raise Invalid("file inputs are not currently supported")
        else:
            raise Invalid(f"{where}: content[{j}]: unknown content type: {part.type}")
    return parts
