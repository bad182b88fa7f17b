"""Tool calls that a model wrote like a line of code: `f(a=1, b=["x"])` or `call:f{a:1}`. Pure.

One reader for both: a name, an opening bracket, `key=value` or `key:value` pairs. Values are the
literals that Python and JSON share, in either spelling. Nothing is evaluated.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from backends.text.json_calls import MAX_CALLS, Calls
from backends.text.tools import Tools, make_call
from backends.types import ToolCall

_MAX_DEPTH = 32
_NAMES = {"True": True, "true": True, "False": False, "false": False}
_NAMES |= {"None": None, "null": None}
_WORD = re.compile(r"[^\W\d][\w.\-]*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_SPACE = re.compile(r"\s*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}


class Form(NamedTuple):
    """`quotes` are pairs around text; only one-character quotes know backslashes."""

    prefix: str
    brackets: str
    assign: str
    quotes: tuple[tuple[str, str], ...]


_PLAIN_QUOTES = (('"""', '"""'), ("'''", "'''"), ('"', '"'), ("'", "'"))
PYTHON = Form("", "()", "=", _PLAIN_QUOTES)
GEMMA = Form(
    "call:", "{}", ":", (("<escape>", "<escape>"), ('<|"|>', '<|"|>'), *_PLAIN_QUOTES)
)  # fmt: skip


class _NoLiteral(Exception):
    pass


def read_python_calls(text: str, tools: Tools, first_index: int = 0) -> tuple[Calls, str]:
    """`f(a=1)`, several of them in brackets or behind each other; and the text behind the last."""
    return _read_calls(text, tools, first_index, PYTHON)


def read_gemma_calls(text: str, tools: Tools, first_index: int = 0) -> tuple[Calls, str]:
    """`call:f{a:1,b:<escape>text<escape>}`."""
    return _read_calls(text, tools, first_index, GEMMA)


def _read_calls(text: str, tools: Tools, first_index: int, form: Form) -> tuple[Calls, str]:
    """All or nothing: what is no call from end to end is text, so that nothing gets lost."""
    reader = _Reader(text, form)
    calls: list[ToolCall] = []
    try:
        reader.skip(" \t\r\n;,[")
        while not reader.is_at_end and len(calls) < MAX_CALLS:
            name, arguments = reader.call()
            call = make_call(name, arguments, first_index + len(calls))
            if name not in tools.parameters or call is None:
                return (), text
            calls.append(call)
            reader.skip(" \t\r\n;,[]")
    except _NoLiteral:
        return (), text
    return tuple(calls), reader.rest


class _Reader:
    def __init__(self, text: str, form: Form) -> None:
        self._text = text
        self._form = form
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._text)

    @property
    def rest(self) -> str:
        return self._text[self._at :]

    def skip(self, characters: str) -> None:
        while self._at < len(self._text) and self._text[self._at] in characters:
            self._at += 1

    def call(self) -> tuple[str, dict[str, Any]]:
        self._expect(self._form.prefix)
        name = self._match(_WORD)
        opening, closing = self._form.brackets
        self._expect(opening)
        return name, self._pairs(closing, self._form.assign, _MAX_DEPTH)

    def _pairs(self, closing: str, assign: str, depth: int) -> dict[str, Any]:
        """`key assign value, …` up to `closing`, which is taken."""
        pairs: dict[str, Any] = {}
        while not self._takes(closing):
            key = self._quoted()
            key = self._match(_WORD) if key is None else key
            self._expect(assign)
            pairs[key] = self._value(depth)
            if not self._takes(","):
                self._expect(closing)
                break
        return pairs

    def _value(self, depth: int) -> Any:
        if depth == 0:
            raise _NoLiteral
        if (text := self._quoted()) is not None:
            return text
        if self._takes("{"):
            return self._pairs("}", ":", depth - 1)
        for opening, closing in (("[", "]"), ("(", ")")):
            if self._takes(opening):
                return self._items(closing, depth - 1)
        if (number := _NUMBER.match(self._text, self._at)) is not None:
            self._at = number.end()
            return _number(number.group())
        word = self._match(_WORD)
        if word not in _NAMES:
            raise _NoLiteral
        return _NAMES[word]

    def _items(self, closing: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self._takes(closing):
            items.append(self._value(depth))
            if not self._takes(","):
                self._expect(closing)
                break
        return items

    def _quoted(self) -> str | None:
        """The text between quotes that stand here; None where none stand."""
        self._skip_space()
        for opening, closing in self._form.quotes:
            if not self._text.startswith(opening, self._at):
                continue
            self._at += len(opening)
            if len(closing) == 1:
                return self._escaped(closing)
            end = self._text.find(closing, self._at)
            if end < 0:
                raise _NoLiteral
            text, self._at = self._text[self._at : end], end + len(closing)
            return text
        return None

    def _escaped(self, closing: str) -> str:
        text: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character == closing:
                return "".join(text)
            text.append(self._after_backslash() if character == "\\" else character)
        raise _NoLiteral

    def _after_backslash(self) -> str:
        if self.is_at_end:
            raise _NoLiteral
        character = self._text[self._at]
        self._at += 1
        if character != "u":
            return _ESCAPES.get(character, character)
        code = self._text[self._at : self._at + 4]
        if re.fullmatch("[0-9A-Fa-f]{4}", code) is None:
            raise _NoLiteral
        self._at += 4
        return chr(int(code, 16))

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at

    def _takes(self, mark: str) -> bool:
        self._skip_space()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _expect(self, mark: str) -> None:
        if mark and not self._takes(mark):
            raise _NoLiteral

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._skip_space()
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _NoLiteral
        self._at = found.end()
        return found.group()


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
