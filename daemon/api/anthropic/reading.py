"""Requests to `/v1/messages` become a `Chat`, or are refused by the name of what is wrong.

What Anthropic's own service refuses is refused here too: a prompt that does not fit is no reason to
forget its beginning, and an answer ends where the context does. What a client may send and has no
meaning here is named in `Wishes.ignored`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import msgspec

from backends.types import Chat, Message
from daemon.api.anthropic.turns import Turns
from daemon.api.anthropic.wire import CountRequest, MessagesRequest, OutputFormat, Tool, ToolChoice
from daemon.api.conversation import check_images, conversation, refuse_later_fields, think_of
from daemon.api.lookup import KnownModel, require_capability, require_completion
from daemon.api.options import ResolvedOptions
from daemon.errors import Invalid

_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "max"}
_CHOICES = ("", "auto", "none", "any", "tool")
_HINTS = ("metadata", "service_tier", "container", "context_management")


@dataclass(frozen=True)
class Wishes:
    """What a request says, understood without knowing the model.

    `think` None leaves it to the model; `tools` are those on offer by name, as chat templates know
    them. Where it `must_call`, the answer is calls of them; only the first counts if it `calls_once`.
    """

    messages: tuple[Message, ...]
    think: bool | str | None
    hides_thinking: bool
    format: bytes | None
    tools: dict[str, bytes]
    must_call: bool
    calls_once: bool
    ignored: tuple[str, ...]


def check_required(data: CountRequest) -> None:
    """The order is the contract's. Raises Invalid."""
    if not data.model.strip():
        raise Invalid("model is required")
    if isinstance(data, MessagesRequest) and data.max_tokens <= 0:
        raise Invalid("max_tokens is required and must be positive")
    if not data.messages:
        raise Invalid("messages is required")


def read_wishes(data: CountRequest) -> Wishes:
    """Raises Invalid, NotYet."""
    refuse_later_fields({"mcp_servers": data.mcp_servers})
    choice = data.tool_choice or ToolChoice()
    turns = Turns()
    turns.add_system(data.system)
    for place, message in enumerate(data.messages):
        turns.add(message, f"messages.{place}")
    return Wishes(
        messages=tuple(turns.messages),
        think=_think(data),
        hides_thinking=data.thinking is not None and data.thinking.display == "omitted",
        format=_format(data),
        tools=_offered_tools(data),
        must_call=choice.type in ("any", "tool"),
        calls_once=choice.disable_parallel_tool_use,
        ignored=(*_ignored(data), *turns.ignored),
    )


def _think(data: CountRequest) -> bool | str | None:
    effort = _EFFORTS.get(data.output_config.effort) if data.output_config else None
    kind = data.thinking.type if data.thinking else ""
    if kind == "disabled":
        return False
    return effort or (True if kind == "enabled" else None)


def _format(data: CountRequest) -> bytes | None:
    """The JSON Schema that the answer is held to."""
    wanted: OutputFormat | None = data.output_config.format if data.output_config else None
    wanted = wanted or data.output_format
    if wanted is None:
        return None
    if wanted.type != "json_schema" or wanted.schema is None:
        raise Invalid("output_config.format: must be a json_schema with its schema")
    return msgspec.json.encode(wanted.schema)


def _offered_tools(data: CountRequest) -> dict[str, bytes]:
    """All of them, only the one that is asked for, or none."""
    tools = {tool.name: _template_tool(tool, place) for place, tool in enumerate(data.tools)}
    if len(tools) < len(data.tools):
        raise Invalid("tools: tool names must be unique")
    choice = data.tool_choice
    if choice is None or choice.type in ("", "auto"):
        return tools
    if choice.type not in _CHOICES:
        raise Invalid(f'tool_choice.type: unexpected value "{choice.type}"')
    if choice.type == "none":
        return {}
    if not tools:
        raise Invalid("tool_choice may only be specified while providing tools")
    if choice.type == "any":
        return tools
    if choice.name not in tools:
        raise Invalid(f'tool_choice.name: there is no tool "{choice.name}" in this request')
    return {choice.name: tools[choice.name]}


def _template_tool(tool: Tool, place: int) -> bytes:
    """JSON, in the form that chat templates are written for."""
    if tool.type not in ("", "custom"):
        raise Invalid(
            f'tools.{place}: tools of type "{tool.type}" are Anthropic\'s own and not available here'
        )
    if not tool.name or tool.input_schema is None:
        missing = "input_schema" if tool.name else "name"
        raise Invalid(f"tools.{place}.{missing}: field required")
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
    }
    return msgspec.json.encode({"type": "function", "function": function})


def _ignored(data: CountRequest) -> list[str]:
    """Hints of this request that have no meaning here."""
    names = [name for name in _HINTS if getattr(data, name) is not None]
    if data.thinking and data.thinking.budget_tokens is not None:
        names.append("thinking.budget_tokens")
    if data.output_config and data.output_config.effort not in ("", *_EFFORTS):
        names.append("output_config.effort")
    return names


def check_model(wishes: Wishes, model: KnownModel) -> None:
    """Raises Invalid, NotYet."""
    require_completion(model, "chat")
    if wishes.tools:
        require_capability(model, "tools")
    check_images(wishes.messages, model)


def sent_options(data: CountRequest) -> dict[str, Any]:
    """By the names that options have here; what is not sent is the model's own."""
    if not isinstance(data, MessagesRequest):
        return {}
    return {
        "num_predict": data.max_tokens,
        "temperature": data.temperature,
        "top_p": data.top_p,
        "top_k": data.top_k,
        "stop": data.stop_sequences or None,
    }


def ignored_by(wishes: Wishes, model: KnownModel) -> tuple[str, ...]:
    """All names; thinking is one where the model has none."""
    thinks_in_vain = bool(wishes.think) and not model.can("thinking")
    return (*wishes.ignored, *(["thinking"] if thinks_in_vain else []))


def to_chat(wishes: Wishes, options: ResolvedOptions, model: KnownModel) -> Chat:
    return Chat(
        request_id=uuid.uuid4().hex,
        messages=conversation(wishes.messages, model),
        template=model.go_template,
        tools=tuple(wishes.tools.values()),
        required_tools=tuple(wishes.tools) if wishes.must_call else (),
        think=_think_of(wishes, model),
        format=wishes.format,
        stop=options.stop,
        sampling=options.sampling,
        limits=options.limits,
        truncate=False,
        shift=False,
    )


def _think_of(wishes: Wishes, model: KnownModel) -> bool | str | None:
    """As everywhere, but that thoughts of a model that has none are not refused."""
    in_vain = bool(wishes.think) and not model.can("thinking")
    return think_of(None if in_vain else wishes.think, model)
