"""What requests say beside their messages, understood and checked: contract.md §11.2, 11.3. Pure.

What would change an answer and cannot be done is refused by the field's name; what is only a hint
is named in the `Hearth-Warnings` header.
"""

from __future__ import annotations

import uuid
from typing import Any, cast

import msgspec

from backends.types import Chat, Message
from daemon.api.conversation import conversation, leading_messages, think_of
from daemon.api.lookup import KnownModel
from daemon.api.openai.messages import read_messages
from daemon.api.openai.tools import ToolWish, read_tools
from daemon.api.openai.wire import (
    ChatRequest,
    CompletionFields,
    CompletionRequest,
    ResponseFormat,
)
from daemon.api.options import ResolvedOptions
from daemon.errors import Invalid

_MOST_TOP_LOGPROBS = 20
_EFFORTS: dict[str, bool | str | None] = {
    "": None,
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
_EFFORTS_TEXT = ", ".join(f'"{effort}"' for effort in _EFFORTS if effort)
# Fields that clients of this and other servers send, and that mean nothing here.
_IGNORED = (
    "logit_bias", "options", "keep_alive", "num_ctx", "top_k", "min_p", "repeat_penalty",
    "repetition_penalty", "functions", "function_call", "web_search_options", "verbosity",
)  # fmt: skip


class ChatWish(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a chat as far as it can be understood without knowing the model."""

    messages: tuple[Message, ...]
    tools: ToolWish = ToolWish()
    think: bool | str | None = None
    format: bytes | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    truncate: bool = True

    def chat(self, model: KnownModel, options: ResolvedOptions) -> Chat:
        return Chat(
            request_id=uuid.uuid4().hex,
            messages=conversation(self.messages, model),
            template=model.go_template,
            tools=self.tools.offered,
            required_tools=self.tools.required,
            think=think_of(self.think, model),
            format=self.format,
            stop=options.stop,
            sampling=options.sampling,
            limits=options.limits,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            truncate=self.truncate,
        )


def read_chat(data: ChatRequest) -> ChatWish:
    """Raises Invalid and NotYet with the texts that clients know."""
    if not data.messages:
        raise Invalid("[] is too short - 'messages'")
    refuse_more_than_one(n=data.n)
    if data.audio or set(data.modalities) - {"text"}:
        raise Invalid('"modalities": only "text" can be answered')
    check_top_logprobs(data.top_logprobs)
    return ChatWish(
        messages=read_messages(data.messages),
        tools=read_tools(data.tools, data.tool_choice, data.parallel_tool_calls),
        think=read_effort(data.reasoning.effort or data.reasoning_effort),
        format=read_format(data.response_format),
        logprobs=data.logprobs,
        top_logprobs=data.top_logprobs,
    )


def check_top_logprobs(count: int, name: str = "top_logprobs") -> None:
    """Raises Invalid."""
    if not 0 <= count <= _MOST_TOP_LOGPROBS:
        raise Invalid(f"{name} must be between 0 and {_MOST_TOP_LOGPROBS}")


def refuse_more_than_one(**counts: int) -> None:
    for name, count in counts.items():
        if count != 1:
            raise Invalid(f'"{name}" must be 1: one request gets one answer')


def read_effort(effort: str) -> bool | str | None:
    """Raises Invalid."""
    if effort not in _EFFORTS:
        raise Invalid(f'invalid reasoning value: "{effort}" (must be {_EFFORTS_TEXT})')
    return _EFFORTS[effort]


def read_format(wanted: ResponseFormat) -> bytes | None:
    """Raises Invalid for a type that is unknown, or no schema where one is promised."""
    match wanted.type:
        case "" | "text":
            return None
        case "json_object":
            return b'"json"'
        case "json_schema":
            return schema_text(wanted.json_schema.schema)
        case _:
            raise Invalid(f'response_format of type "{wanted.type}" is not supported')


def schema_text(schema: dict[str, Any] | None) -> bytes:
    if schema is None:
        raise Invalid('a format of type "json_schema" needs a "schema"')
    return msgspec.json.encode(schema)


def read_stop(value: Any) -> list[str]:
    """One text or several. Raises Invalid."""
    if value is None:
        return []
    items = cast("list[Any]", value) if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str):
            raise Invalid(f"invalid type for 'stop' field: {type(item).__name__}")
    return items


def sampling_options(data: CompletionFields, max_tokens: int | None) -> dict[str, Any]:
    """As names of options. Temperature and top_p have this dialect's own defaults, not the model's."""
    return {
        "num_predict": max_tokens,
        "temperature": 1.0 if data.temperature is None else data.temperature,
        "top_p": 1.0 if data.top_p is None else data.top_p,
        "seed": data.seed,
        "frequency_penalty": data.frequency_penalty,
        "presence_penalty": data.presence_penalty,
        "stop": read_stop(data.stop) or None,
    }


def chat_options(data: ChatRequest) -> dict[str, Any]:
    wanted = data.max_completion_tokens
    return sampling_options(data, data.max_tokens if wanted is None else wanted)


def completion_options(data: CompletionRequest) -> dict[str, Any]:
    options = sampling_options(data, data.max_tokens)
    # Here 0 has always meant that nothing was sent.
    return options | {"top_p": options["top_p"] or 1.0}


def ignored_names(data: msgspec.Struct) -> list[str]:
    """Which of the fields without a meaning here say something."""
    return [name for name in _IGNORED if getattr(data, name, None) not in (None, "", [], {})]


def read_prompt(value: Any) -> str:
    """One text, also alone in a list. Raises Invalid."""
    prompts = cast("list[Any]", value) if isinstance(value, list) else [value]
    if len(prompts) != 1 or not isinstance(prompts[0], str):
        raise Invalid(
            '"prompt" must be one string; token ids and several prompts are not supported'
        )
    return prompts[0]


def check_completion(data: CompletionRequest) -> None:
    """Raises Invalid."""
    refuse_more_than_one(n=data.n, best_of=data.best_of)
    if data.echo:
        raise Invalid('"echo" is not supported')
    check_top_logprobs(data.logprobs or 0, "logprobs")


def completion_chat(
    data: CompletionRequest, prompt: str, model: KnownModel, options: ResolvedOptions
) -> Chat:
    """One user message in the model's template; no conversation stands between prompt and suffix."""
    leading = () if data.suffix else leading_messages(model, model.stored.system)
    return Chat(
        request_id=uuid.uuid4().hex,
        messages=(*leading, Message(role="user", content=prompt)),
        template=model.go_template,
        suffix=data.suffix,
        think=think_of(None, model),
        stop=options.stop,
        sampling=options.sampling,
        limits=options.limits,
        logprobs=data.logprobs is not None,
        top_logprobs=data.logprobs or 0,
    )
