"""The functions a template may call: Go's own and the four this dialect adds. All are pure."""

from __future__ import annotations

import datetime
import html
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backends.text.go_template.values import Record, is_true, to_json, to_text

_MAX_WIDTH = 1000
_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d*))?(.)", re.DOTALL)
_SCHEMA_TYPES = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "array": "any[]",
    "object": "Record<string, any>",
    "null": "null",
}


class CallError(Exception):
    """A function that cannot take these arguments; the evaluator adds the line."""


@dataclass(frozen=True, slots=True)
class GoFunction:
    """`call` gets the evaluated arguments; -1 for `most` is any number."""

    call: Callable[..., object]
    least: int
    most: int


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return {float: "float64", str: "string"}.get(type(value), type(value).__name__)


def equal(first: object, *others: object) -> bool:
    """True when `first` equals any of the others. Raises CallError for kinds that do not compare."""
    if not others:
        raise CallError("missing argument for comparison")
    return any(_is_equal(first, other) for other in others)


def _is_equal(first: object, other: object) -> bool:
    if first is None or other is None:
        return first is other
    for value in (first, other):
        if isinstance(value, dict | list | Record):
            raise CallError("non-comparable type")
    if _kind(first) != _kind(other):
        raise CallError("incompatible types for comparison")
    return first == other


def _less(first: Any, other: Any) -> bool:
    kinds = (_kind(first), _kind(other))
    if kinds[0] != kinds[1]:
        raise CallError("incompatible types for comparison")
    if kinds[0] not in ("int", "float64", "string"):
        raise CallError("invalid type for comparison")
    return first < other


def length(value: object) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict | list | tuple):
        return len(value)
    raise CallError(f"len of type {_kind(value)}")


def index(value: Any, *keys: Any) -> object:
    for key in keys:
        value = _item(value, key)
    return value


def _item(value: Any, key: Any) -> object:
    if isinstance(value, dict):
        return value.get(key)
    if not isinstance(key, int) or isinstance(key, bool):
        raise CallError(f"cannot index with type {_kind(key)}")
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, list | tuple | bytes):
        raise CallError(f"can't index item of type {_kind(value)}")
    if not 0 <= key < len(value):
        raise CallError(f"index out of range: {key}")
    return value[key]


def cut(value: Any, *bounds: Any) -> object:
    if not all(isinstance(bound, int) for bound in bounds):
        raise CallError("cannot slice with a bound that is no integer")
    data = value.encode() if isinstance(value, str) else value
    if not isinstance(data, list | tuple | bytes):
        raise CallError(f"can't slice item of type {_kind(value)}")
    start, end = (*bounds[:2], *(0, len(data))[len(bounds[:2]) :])
    if not 0 <= start <= end <= len(data):
        raise CallError("slice bounds out of range")
    part = data[start:end]
    return part.decode(errors="replace") if isinstance(part, bytes) else part


def printf(pattern: object, *values: object) -> str:
    """Go's verbs s d v q t f g e x c and %%; widths are bounded."""
    if not isinstance(pattern, str):
        raise CallError("printf needs a format")
    left = list(values)
    text = _VERB.sub(lambda match: _formatted(match, left), pattern)
    surplus = ", ".join(f"{_kind(value)}={to_text(value)}" for value in left)
    return f"{text}%!(EXTRA {surplus})" if left else text


def _formatted(match: re.Match[str], left: list[object]) -> str:
    flags, width, precision, verb = match.groups()
    if verb == "%":
        return "%"
    if not left:
        return f"%!{verb}(MISSING)"
    if int(width or 0) > _MAX_WIDTH or int(precision or 0) > _MAX_WIDTH:
        raise CallError("printf width is too large")
    text = _verb_text(verb, left.pop(0), precision)
    if "-" in flags:
        return text.ljust(int(width or 0))
    return text.zfill(int(width or 0)) if "0" in flags else text.rjust(int(width or 0))


def _verb_text(verb: str, value: Any, precision: str | None) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if verb in "sv":
        text = to_text(value)
        return text[: int(precision)] if precision and verb == "s" else text
    if verb == "q" and isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if verb == "t" and isinstance(value, bool):
        return to_text(value)
    if verb in "dxXoc" and is_number and isinstance(value, int):
        return chr(value) if verb == "c" else format(value, verb)
    if verb in "feg" and isinstance(value, float):
        return format(value, f".{precision or 6}{verb}") if verb != "g" else to_text(value)
    return f"%!{verb}({_kind(value)}={to_text(value)})"


def _print(*values: object) -> str:
    """Blanks go between operands when neither is a string."""
    text = ""
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            text += " "
        text += to_text(value)
    return text


def _script_text(*values: object) -> str:
    text = _print(*values)
    pairs = (("\\", "\\\\"), ("'", "\\'"), ('"', '\\"'), ("<", "\\u003C"), (">", "\\u003E"))
    for plain, escaped in (*pairs, ("&", "\\u0026"), ("=", "\\u003D"), ("\n", "\\u000A")):
        text = text.replace(plain, escaped)
    return text


def _html_text(*values: object) -> str:
    return html.escape(_print(*values)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


def _not_callable(*_: object) -> object:
    raise CallError("call of a value that is no function")


def _day(offset_days: int) -> Callable[..., str]:
    def day(*_: object) -> str:
        today = datetime.datetime.now().astimezone().date()
        return (today + datetime.timedelta(days=offset_days)).isoformat()

    return day


def typescript_type(schema: object) -> str:
    """A JSON Schema property as a TypeScript type."""
    form = schema.as_json if isinstance(schema, Record) else schema
    if not isinstance(form, dict):
        return "any"
    if form.get("anyOf"):
        return " | ".join(typescript_type(choice) for choice in form["anyOf"])
    kinds = form.get("type")
    names = [kinds] if isinstance(kinds, str) else list(kinds or [])
    return " | ".join(_SCHEMA_TYPES.get(str(name), "any") for name in names) or "any"


FUNCTIONS: dict[str, GoFunction] = {
    # `and` and `or` are evaluated lazily by the evaluator; here for their names and counts.
    "and": GoFunction(_not_callable, 1, -1),
    "or": GoFunction(_not_callable, 1, -1),
    "not": GoFunction(lambda value: not is_true(value), 1, 1),
    "eq": GoFunction(equal, 1, -1),
    "ne": GoFunction(lambda a, b: not _is_equal(a, b), 2, 2),
    "lt": GoFunction(_less, 2, 2),
    "le": GoFunction(lambda a, b: not _less(b, a), 2, 2),
    "gt": GoFunction(lambda a, b: _less(b, a), 2, 2),
    "ge": GoFunction(lambda a, b: not _less(a, b), 2, 2),
    "len": GoFunction(length, 1, 1),
    "index": GoFunction(index, 1, -1),
    "slice": GoFunction(cut, 1, 4),
    "print": GoFunction(_print, 0, -1),
    "printf": GoFunction(printf, 1, -1),
    "println": GoFunction(lambda *values: " ".join(map(to_text, values)) + "\n", 0, -1),
    "html": GoFunction(_html_text, 1, -1),
    "js": GoFunction(_script_text, 1, -1),
    "urlquery": GoFunction(lambda *v: urllib.parse.quote_plus(_print(*v)), 1, -1),
    "call": GoFunction(_not_callable, 1, -1),
    "json": GoFunction(to_json, 1, 1),
    "currentDate": GoFunction(_day(0), 0, 1),
    "yesterdayDate": GoFunction(_day(-1), 0, 1),
    "toTypeScriptType": GoFunction(typescript_type, 1, 1),
}
