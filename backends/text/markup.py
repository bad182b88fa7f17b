"""What a model's text is made of: thoughts, tool calls and the answer itself. Main thread only.

`Markup` says what to look for, from template, prompt and request; `MarkupReader` takes one answer
apart. Promise: the same result however the text is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from backends.text import harmony
from backends.text.harmony import HarmonyParser, Shown
from backends.text.template_facts import TemplateFacts, go_facts, jinja_facts
from backends.text.thinking import ThinkingSplitter, starts_inside
from backends.text.tool_families import ToolFamily, tool_family
from backends.text.tools import Tools
from backends.types import Chat

_go_facts = lru_cache(maxsize=16)(go_facts)
_jinja_facts = lru_cache(maxsize=16)(jinja_facts)


class Markup(msgspec.Struct, frozen=True, kw_only=True):
    """`thinking_tags` None: nothing is split off. `family` None: no tools were given."""

    tools: Tools = Tools()
    family: ToolFamily | None = None
    thinking_tags: tuple[str, str] | None = None
    starts_inside: bool = False
    is_harmony: bool = False

    @classmethod
    def of(cls, chat: Chat, chat_template: str, prompt: str) -> Markup:
        """`chat_template` is the artifact's own; `prompt` as it was rendered."""
        template = chat.template or chat_template
        facts = _facts(chat, template)
        tools = Tools.read(chat.tools)
        tags = facts.thinking_tags if chat.think else None
        return cls(
            tools=tools,
            family=tool_family(template, facts.tool_call_tag) if tools.names else None,
            thinking_tags=tags,
            starts_inside=tags is not None and starts_inside(prompt, tags[0]),
            is_harmony=chat.prompt is None and all(mark in template for mark in harmony.MARKS),
        )


def _facts(chat: Chat, template: str) -> TemplateFacts:
    return _go_facts(template) if chat.template else _jinja_facts(template)


class MarkupReader:
    def __init__(self, markup: Markup, prompt: str) -> None:
        self._harmony = HarmonyParser(prompt, markup.tools) if markup.is_harmony else None
        tags = markup.thinking_tags
        self._splitter = (
            ThinkingSplitter(*tags, starts_inside=markup.starts_inside) if tags else None
        )
        self._calls = markup.family.parser(markup.tools) if markup.family else None

    def push(self, text: str) -> Shown:
        if self._harmony is not None:
            return self._harmony.push(text)
        thinking, answer = self._splitter.push(text) if self._splitter else ("", text)
        return self._answer(thinking, answer)

    def flush(self) -> Shown:
        """End of the answer: what was held back is text."""
        if self._harmony is not None:
            return self._harmony.flush()
        thinking, answer = self._splitter.flush() if self._splitter else ("", "")
        shown = self._answer(thinking, answer)
        if self._calls is None:
            return shown
        text, calls = self._calls.flush()
        return joined([shown, Shown(text=text, calls=calls)])

    def _answer(self, thinking: str, answer: str) -> Shown:
        if self._calls is None or not answer:
            return Shown(thinking, answer)
        text, calls = self._calls.push(answer)
        return Shown(thinking, text, calls)


def joined(pieces: Iterable[Shown]) -> Shown:
    pieces = list(pieces)
    return Shown(
        "".join(piece.thinking for piece in pieces),
        "".join(piece.text for piece in pieces),
        tuple(call for piece in pieces for call in piece.calls),
    )
