"""Requests to `/api/generate` and `/api/chat` become a `Chat`, or are refused with the field's texts.

The order of checks is the contract's (§1.6, 1.7), because clients see the first that fails. What
this version cannot do yet is refused by the field's name, after everything that is wrong anyway.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import msgspec

from backends.types import Chat, Message, ToolCall
from daemon.api.conversation import (
    check_images,
    check_think,
    conversation,
    leading_messages,
    system_messages,
    think_of,
)
from daemon.api.exchange import KeepAlive
from daemon.api.images import placed_images, read_image
from daemon.api.lookup import KnownModel, require_capability, require_completion
from daemon.api.ollama.keep_alive import parse_keep_alive
from daemon.api.ollama.wire import ChatRequest, GenerateRequest, ModelRequest, WireMessage
from daemon.api.options import ResolvedOptions
from daemon.errors import Internal, Invalid
from daemon.models.go_format import go_quote
from daemon.models.template_choice import template_error

_THINK_LEVELS = ("high", "medium", "low", "max")
_LEVELS_TEXT = '"high", "medium", "low", "max", true, or false'
_MOST_TOP_LOGPROBS = 20
_KNOWN_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Wishes:
    """What both kinds of request say, already understood; `messages` without what the model adds."""

    keep_alive: KeepAlive
    think: bool | str | None
    format: Any
    messages: tuple[Message, ...]

    @property
    def is_unload(self) -> bool:
        """Without any text to answer, keep_alive 0 means that the model shall go."""
        return self.keep_alive == 0


def read_think(value: Any) -> bool | str | None:
    """Raises Invalid with the text that the command lines of the field look for."""
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise Invalid(f"think must be a boolean or string ({_LEVELS_TEXT})")
    if value not in _THINK_LEVELS:
        raise Invalid(f'invalid think value: "{value}" (must be {_LEVELS_TEXT})')
    return value


def read_wishes(data: GenerateRequest | ChatRequest) -> Wishes:
    """What can be refused without knowing the model. Raises Invalid, NotYet."""
    wishes = Wishes(
        keep_alive=parse_keep_alive(data.keep_alive),
        think=read_think(data.think),
        format=None if data.format == "" else data.format,
        messages=_sent_messages(data),
    )
    if not 0 <= data.top_logprobs <= _MOST_TOP_LOGPROBS:
        raise Invalid(f"top_logprobs must be between 0 and {_MOST_TOP_LOGPROBS}")
    return wishes


def _sent_messages(data: GenerateRequest | ChatRequest) -> tuple[Message, ...]:
    """A prompt is what a user says."""
    if isinstance(data, GenerateRequest):
        data = ChatRequest(
            messages=(WireMessage(role="user", content=data.prompt, images=data.images),)
        )
    return tuple(_message(message) for message in data.messages)


def check_generate(data: GenerateRequest, wishes: Wishes, model: KnownModel) -> None:
    """Raises Invalid, then NotYet."""
    if data.raw and (data.template or data.system or data.context):
        raise Invalid("raw mode does not support template, system, or context")
    if data.images and data.suffix:
        raise Invalid('"images" cannot be used with "suffix"')
    check_think(wishes.think, model)
    require_completion(model, "generate")
    if data.suffix:
        require_capability(model, "insert")
    check_images(wishes.messages, model)


def check_chat(data: ChatRequest, wishes: Wishes, model: KnownModel) -> None:
    """Raises Invalid, then NotYet."""
    check_think(wishes.think, model)
    require_completion(model, "chat")
    if data.tools:
        require_capability(model, "tools")
    check_images(wishes.messages, model)


async def check_template(source: str) -> None:
    """Raises Internal (500, as clients know it) with the parser's text."""
    if error := await template_error(source):
        raise Internal(error)


def _format_of(wishes: Wishes) -> bytes | None:
    """Raises Internal (500, as clients know it) for what is neither "json" nor a schema."""
    wanted = wishes.format
    if wanted is None:
        return None
    text = msgspec.json.encode(wanted)
    if wanted != "json" and not isinstance(wanted, dict):
        shown = go_quote(text.decode())
        raise Internal(f'invalid format: {shown}; expected "json" or a valid JSON Schema object')
    return text


def _chat(
    data: ModelRequest,
    wishes: Wishes,
    options: ResolvedOptions,
    model: KnownModel,
    **fields: Any,
) -> Chat:
    return Chat(
        request_id=uuid.uuid4().hex,
        think=think_of(wishes.think, model),
        format=_format_of(wishes),
        stop=options.stop,
        sampling=options.sampling,
        limits=options.limits,
        logprobs=data.logprobs,
        top_logprobs=data.top_logprobs,
        truncate=data.truncate is not False,
        shift=data.shift,
        **fields,
    )


def generate_to_chat(
    data: GenerateRequest, wishes: Wishes, options: ResolvedOptions, model: KnownModel
) -> Chat:
    """One user message behind the model's system text and examples; raw is the prompt alone.

    Images of a raw prompt stand in front of it.
    """
    if data.raw:
        images = tuple(Message(role="user", images=m.images) for m in wishes.messages if m.images)
        return _chat(data, wishes, options, model, prompt=data.prompt, messages=images)
    return _chat(
        data,
        wishes,
        options,
        model,
        messages=(*_leading(data, model), *wishes.messages),
        template=data.template or model.go_template,
        suffix=data.suffix,
        context_ids=data.context,
        want_context=True,
    )


def _leading(data: GenerateRequest, model: KnownModel) -> tuple[Message, ...]:
    """What stands before the prompt; between a prompt and its suffix no conversation has room."""
    if data.suffix:
        return ()
    system = data.system or model.stored.system
    return system_messages(system) if data.context else leading_messages(model, system)


def chat_to_chat(
    data: ChatRequest, wishes: Wishes, options: ResolvedOptions, model: KnownModel
) -> Chat:
    """The model's examples, then the request; its system text leads unless the request brings one."""
    messages = conversation(wishes.messages, model)
    tools = tuple(msgspec.json.encode(tool) for tool in data.tools)
    template = model.go_template
    return _chat(data, wishes, options, model, messages=messages, template=template, tools=tools)


def _message(message: WireMessage) -> Message:
    """Images stand where the text says `[img]`, else before it."""
    content, places = placed_images(message.content, len(message.images))
    role = message.role.lower()
    calls = tuple(
        ToolCall(
            id=call.id,
            name=call.function.name,
            arguments=msgspec.json.encode(call.function.arguments),
            index=call.function.index,
        )
        for call in message.tool_calls
    )
    return Message(
        role=role if role in _KNOWN_ROLES else message.role,
        content=content,
        thinking=message.thinking,
        images=tuple(map(read_image, message.images)),
        image_places=places,
        tool_calls=calls,
        tool_name=message.tool_name,
        tool_call_id=message.tool_call_id,
    )
