"""Tool calls that a model wrote as JSON, whatever it put around them. Pure.

Promise: only tools that the request names are called, and the work is bounded however hostile the
text is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NoReturn

from backends.text.tools import Tools, make_call
from backends.types import ToolCall

MAX_CALLS = 128
# Beginnings of objects tried in one text, and levels looked into.
_MAX_ATTEMPTS = 512
_MAX_DEPTH = 8
_NAME_KEYS = ("name", "tool_name")

# Where it begins and ends in the text, and what it is.
_Object = tuple[int, int, dict[str, Any]]
Calls = tuple[ToolCall, ...]


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def read_json_calls(text: str, tools: Tools, first_index: int = 0) -> tuple[Calls, str]:
    """The calls in `text`, in order, and the text behind the last one.

    A call is a known name followed by, or inside, a JSON object that holds its arguments.
    """
    if not tools.names:
        return (), text
    by_length = sorted(map(re.escape, tools.names), key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(by_length)})(?!\w)")
    objects = list(_objects(text))
    calls: list[ToolCall] = []
    at = 0
    for name in islice(pattern.finditer(text), _MAX_ATTEMPTS):
        if name.start() < at or len(calls) == MAX_CALLS:
            continue
        found = _next_arguments(objects, at, name)
        if found is None:
            continue
        arguments, end = found
        call = make_call(name.group(), arguments, first_index + len(calls))
        if call is not None:
            at = max(end, name.end())
            calls.append(call)
    return tuple(calls), text[at:]


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
        if any(value.get(key) == name for key in _NAME_KEYS):
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
        value = json_value(value)
    return value if isinstance(value, dict) else None


def json_value(text: str) -> Any:
    """What `text` says as JSON; None where it says nothing."""
    try:
        return _decoder.decode(text.strip())
    except (ValueError, RecursionError):
        return None
