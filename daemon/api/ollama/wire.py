"""What `/api/generate` and `/api/chat` read and write, as Structs: contract.md §1.6, 1.7, 2.8.

Requests give every field a default, because clients leave out anything; `None` is "not sent".
Answers leave out what is empty, but for the fields without a default here.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What both routes share. `format`, `think` and `keep_alive` are checked by hand, with texts."""

    model: str = ""
    stream: bool | None = None
    format: Any = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None
    think: Any = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = msgspec.field(default=False, name="_debug_render_only")


class GenerateRequest(ModelRequest, frozen=True, kw_only=True, omit_defaults=True):
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: tuple[TokenId, ...] = ()
    raw: bool = False
    images: tuple[str, ...] = ()


class WireFunction(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is always an object; its key order is kept."""

    name: str = ""
    arguments: dict[str, Any] = {}
    index: int = 0


class WireToolCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    function: WireFunction
    id: str = ""


class WireMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`role` is any string; other letter cases of the known ones are accepted."""

    role: str = ""
    content: str = ""
    thinking: str = ""
    images: tuple[str, ...] = ()
    tool_calls: tuple[WireToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


class ChatRequest(ModelRequest, frozen=True, kw_only=True, omit_defaults=True):
    messages: tuple[WireMessage, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    token: str
    logprob: float
    bytes: tuple[int, ...] = ()


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`bytes` are the token's own, which may be part of a character; `token` is its lossy text."""

    token: str
    logprob: float
    bytes: tuple[int, ...] = ()
    top_logprobs: tuple[TopLogprob, ...] = ()


class DebugInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    rendered_template: str
    image_count: int = 0


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: tuple[WireToolCall, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What both answers share. Durations are ns; only the last object of an answer has them.

    `prompt_dropped_count` is ours: ids that were cut from the prompt or left the context. So is
    `eval_forced_count`: the last ids of an answer held to a `format`, which only brought it to its
    end before `num_predict` or the context was used up.
    """

    model: str
    created_at: str
    done: bool
    done_reason: str = ""
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_dropped_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_forced_count: int = 0
    eval_duration: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")


class GenerateAnswer(Answer, frozen=True, kw_only=True, omit_defaults=True):
    response: str
    thinking: str = ""
    context: tuple[int, ...] = ()


class ChatAnswer(Answer, frozen=True, kw_only=True, omit_defaults=True):
    message: AnswerMessage
