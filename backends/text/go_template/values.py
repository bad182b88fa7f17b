"""Go values as Python ones: structs, JSON-printing maps, truth, printing and ordering.

Maps are dicts, slices are lists; `Record` is a struct, whose unknown fields are an error where a
map's are merely empty. Strings are text; lengths and indices count UTF-8 bytes, as Go has them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

NO_VALUE = "<no value>"


class Record:
    """A Go struct: named fields, its JSON form, and what it prints as (`text`, else JSON)."""

    def __init__(
        self, fields: Mapping[str, object], as_json: object, text: str | None = None
    ) -> None:
        self.fields = fields
        self.as_json = as_json
        self.text = text


class JsonMap(dict[str, Any]):
    """A map that prints as JSON and keeps its key order there; ranging is sorted all the same."""


class JsonList(list[Any]):
    """A slice that prints as JSON."""


def is_true(value: object) -> bool:
    """Go's truth: zero numbers, empty strings, maps and slices, and nil are false."""
    if isinstance(value, Record):
        return True
    return bool(value)


def to_json(value: object) -> str:
    """Compact JSON with `<`, `>`, `&` and the line separators escaped, as Go writes it."""
    text = json.dumps(json_form(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def json_form(value: object) -> object:
    if isinstance(value, Record):
        return json_form(value.as_json)
    if isinstance(value, JsonMap):
        return {key: json_form(item) for key, item in value.items()}
    if isinstance(value, dict):
        return {str(key): json_form(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [json_form(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    return value


def to_text(value: object) -> str:
    """What `{{ value }}` and `%v` print."""
    match value:
        case None:
            return NO_VALUE
        case bool():
            return "true" if value else "false"
        case float():
            return float_text(value)
        case Record():
            return to_json(value) if value.text is None else value.text
        case JsonMap() | JsonList():
            return to_json(value)
        case dict():
            pairs = (f"{to_text(key)}:{to_text(value[key])}" for key in sorted(value, key=str))
            return f"map[{' '.join(pairs)}]"
        case list() | tuple():
            return f"[{' '.join(to_text(item) for item in value)}]"
        case _:
            return str(value)


def float_text(value: float) -> str:
    """Go's shortest form: plain between 1e-4 and 1e21, else with an exponent of two digits."""
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    if value == 0 or 1e-4 <= abs(value) < 1e21:
        text = repr(value) if abs(value) < 1e16 else f"{value:.0f}"
        return text.removesuffix(".0")
    mantissa, _, exponent = f"{value!r}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{exponent}" if exponent else f"{value:.0e}"
