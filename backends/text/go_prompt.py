"""A chat as a Go template renders it: parsed once, rendered under the same limits as Jinja templates.

Main thread only. Promise: a prompt, or EngineError("template", …) naming line and reason.
"""

from __future__ import annotations

import hashlib

import msgspec

from backends.text.go_template import GoTemplate, TemplateError, Thinking
from backends.text.render_guard import (
    RENDER_MEMORY_BYTES,
    RENDER_SECONDS,
    RenderLimit,
    render_guard,
)
from backends.types import Chat, EngineError

_CACHE_ENTRIES = 16

_parsed: dict[str, GoTemplate] = {}


def render_go(chat: Chat, limit_seconds: float = RENDER_SECONDS) -> str:
    """The prompt of `chat.template` for its messages, or for its last message and `suffix`."""
    try:
        with render_guard(limit_seconds, RENDER_MEMORY_BYTES):
            return _render(_template(chat.template), chat)
    except (RenderLimit, TemplateError, RecursionError) as error:
        raise EngineError("template", str(error) or type(error).__name__) from error
    except msgspec.MsgspecError as error:
        raise EngineError(
            "invalid", f"a tool or its arguments are no JSON object: {error}"
        ) from error


def thinking_of(chat: Chat) -> Thinking:
    """What the request says of thinking, as the templates' three variables have it."""
    level = chat.think if isinstance(chat.think, str) else ""
    return Thinking(is_set=chat.think is not None, is_on=bool(chat.think), level=level)


def _render(template: GoTemplate, chat: Chat) -> str:
    if chat.suffix:
        prompt = chat.messages[-1].content if chat.messages else ""
        return template.render_suffix(prompt, chat.suffix, thinking=thinking_of(chat))
    return template.render(chat.messages, tools=chat.tools, thinking=thinking_of(chat))


def _template(source: str) -> GoTemplate:
    key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    if key not in _parsed:
        while len(_parsed) >= _CACHE_ENTRIES:
            del _parsed[next(iter(_parsed))]
        _parsed[key] = GoTemplate(source)
    return _parsed[key]
