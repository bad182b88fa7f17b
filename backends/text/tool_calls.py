"""Tool calls in a model's text → `ToolCall`s, by the mark-up its family writes. Pure.

Promise: any cutting of the text gives the same calls and the same text. Only tools that the request
names are called; what looks like a call and is none comes back as text, never as an error.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from backends.text.thinking import held_length
from backends.types import ToolCall

MAX_CALL_CHARACTERS = 1 << 20
_MAX_CALLS = 128
# Beginnings of objects tried in one text, and levels looked into: hostile text must stay cheap.
_MAX_ATTEMPTS = 512
_MAX_DEPTH = 8
_ID_LETTERS = string.ascii_lowercase + string.digits
_BETWEEN_CALLS = " \t\r\n,;[]"

_decoder = json.JSONDecoder()
# Where it begins and ends in the text, and what it is.
_Object = tuple[int, int, dict[str, Any]]


class ToolCallParser(Protocol):
    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Text to show and calls that are complete."""
        ...

    def flush(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The same at the end of the stream."""
        ...


class TaggedCalls:
    """Calls between two tags; with `closing` "" up to the end. Other text passes.

    White space between two calls belongs to the mark-up, not to the answer.
    """

    def __init__(self, opening: str, closing: str, names: Sequence[str]) -> None:
        self._opening = opening
        self._closing = closing
        self._names = names
        self._held = ""
        self._is_inside = False
        self._count = 0

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        searched = len(self._held) - len(self._closing)
        self._held += text
        shown: list[str] = []
        calls: list[ToolCall] = []
        while self._advance(max(searched, 0), shown, calls):
            searched = 0
        return "".join(shown), tuple(calls)

    def flush(self) -> tuple[str, tuple[ToolCall, ...]]:
        rest, self._held = self._held, ""
        if not self._is_inside:
            return ("" if self._count and not rest.strip() else rest), ()
        self._is_inside = False
        calls = self._calls(rest)
        return ("" if calls else self._opening + rest), calls

    def _advance(self, searched: int, shown: list[str], calls: list[ToolCall]) -> bool:
        """One tag further, if it is there yet."""
        if not self._is_inside:
            before, tag, after = self._held.partition(self._opening)
            if not tag:
                shown.append(self._take_plain())
                return False
            if before.strip() or not self._count:
                shown.append(before)
            self._held, self._is_inside = after, True
            return True
        end = self._held.find(self._closing, searched) if self._closing else -1
        if end < 0:
            if len(self._held) > MAX_CALL_CHARACTERS:
                shown.append(self._give_up())
            return False
        body, self._held = self._held[:end], self._held[end + len(self._closing) :]
        self._is_inside = False
        found = self._calls(body)
        calls += found
        if not found:
            shown.append(self._opening + body + self._closing)
        return True

    def _take_plain(self) -> str:
        if self._count and not self._held.strip():
            return ""
        cut = len(self._held) - held_length(self._held, self._opening)
        plain = self._held[:cut]
        if self._count and not plain.strip():
            return ""
        self._held = self._held[cut:]
        return plain

    def _give_up(self) -> str:
        """Too long for a call: text it was."""
        text, self._held = self._opening + self._held, ""
        self._is_inside = False
        return text

    def _calls(self, body: str) -> tuple[ToolCall, ...]:
        calls, _ = find_calls(body, self._names, self._count)
        self._count += len(calls)
        return calls


class LeadingCalls:
    """Answers that are a call from their first character on: `{` or `[`, maybe after `prefix`."""

    def __init__(self, brackets: str, names: Sequence[str], prefix: str = "") -> None:
        self._brackets = brackets
        self._names = names
        self._prefix = prefix
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        if self._is_text:
            return text, ()
        self._held += text
        if self._may_be_call() and len(self._held) <= MAX_CALL_CHARACTERS:
            return "", ()
        self._is_text = True
        shown, self._held = self._held, ""
        return shown, ()

    def flush(self) -> tuple[str, tuple[ToolCall, ...]]:
        body, self._held = self._held, ""
        calls, rest = find_calls(body, self._names)
        if not calls:
            return body, ()
        return rest.strip(_BETWEEN_CALLS), calls

    def _may_be_call(self) -> bool:
        text = self._held[: len(self._prefix) + 64].lstrip()
        if self._prefix and self._prefix.startswith(text):
            return True
        text = text.removeprefix(self._prefix).lstrip()
        return not text or text[0] in self._brackets


def tool_call_parser(template: str, names: Sequence[str], tag: str = "{") -> ToolCallParser:
    """The parser for the family whose mark-up `template` shows; `tag` is what a Go template told."""
    if "<tool_call>" in template:
        return TaggedCalls("<tool_call>", "</tool_call>", names)
    if "[TOOL_CALLS]" in template:
        return TaggedCalls("[TOOL_CALLS]", "", names)
    if "<|python_tag|>" in template:
        return LeadingCalls("{", names, prefix="<|python_tag|>")
    if tag.strip() in ("", "{", "["):
        return LeadingCalls(tag.strip() or "{", names)
    return TaggedCalls(tag, "", names)


def find_calls(
    text: str, names: Sequence[str], first_index: int = 0
) -> tuple[tuple[ToolCall, ...], str]:
    """The calls of known tools in `text`, in order, and the text behind the last one.

    A call is a known name followed by, or inside, a JSON object that holds its arguments.
    """
    if not names:
        return (), text
    by_length = sorted(map(re.escape, names), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(by_length)})(?!\w)")
    objects = list(_objects(text))
    calls: list[ToolCall] = []
    at = 0
    for name in islice(pattern.finditer(text), _MAX_ATTEMPTS):
        if name.start() < at or len(calls) == _MAX_CALLS:
            continue
        found = _next_arguments(objects, at, name)
        if found is not None:
            arguments, end = found
            at = max(end, name.end())
            calls.append(_call(name.group(), arguments, first_index + len(calls)))
    return tuple(calls), text[at:]


def _call(name: str, arguments: dict[str, Any], index: int) -> ToolCall:
    call_id = "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    data = json.dumps(arguments, ensure_ascii=False, separators=(",", ":")).encode()
    return ToolCall(id=call_id, name=name, arguments=data, index=index)


def _next_arguments(
    objects: Sequence[_Object], start: int, name: re.Match[str]
) -> tuple[dict[str, Any], int] | None:
    """Arguments for `name` and where their object ends: the first that holds or follows the name."""
    for begin, end, value in objects:
        if begin < start or end <= name.start():
            continue
        arguments = _arguments(value, name.group(), is_after_name=begin > name.start())
        return None if arguments is None else (arguments, end)
    return None


def _objects(text: str) -> Iterator[_Object]:
    """Every JSON object that is not inside another one."""
    begin = text.find("{")
    for _ in range(_MAX_ATTEMPTS):
        if begin < 0:
            return
        try:
            value, end = _decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            begin = text.find("{", begin + 1)
            continue
        yield begin, end, value
        begin = text.find("{", end)


def _arguments(value: Any, name: str, *, is_after_name: bool) -> dict[str, Any] | None:
    """None when the object is no call of `name`."""
    named = _named_arguments(value, name, _MAX_DEPTH)
    if named is not None or not is_after_name:
        return named
    is_other_call = isinstance(value.get("name"), str) and "arguments" in value
    return None if is_other_call else value


def _named_arguments(value: Any, name: str, depth: int) -> dict[str, Any] | None:
    """Looks for {"name": name, "arguments": …} or {name: {…}}, also further inside."""
    if depth == 0 or not isinstance(value, (dict, list)):
        return None
    if isinstance(value, dict):
        if value.get("name") == name:
            return _object_of(value.get("arguments", value.get("parameters", {})))
        if isinstance(value.get("name"), str):
            return _named_arguments(value.get("function"), name, depth - 1)
        if isinstance(value.get(name), dict):
            return value[name]
    children = value.values() if isinstance(value, dict) else value
    found = (_named_arguments(child, name, depth - 1) for child in children)
    return next((arguments for arguments in found if arguments is not None), None)


def _object_of(value: Any) -> dict[str, Any] | None:
    """An object, or a text that holds one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None
