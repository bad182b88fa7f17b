"""Two hundred JSON Schemas as clients send them, drawn once and for all from their numbers."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

COUNT = 200
_NAMES = (
    "name", "age", "city", "email", "tags", "items", "price", "active", "id", "status", "notes",
    "created", "address", "total", "score", "kind", "größe", "first name", "lines", "owner",
)  # fmt: skip
_WORDS = ("red", "green", "blue", "small", "large", "open", "closed", "naïve", 'quo"ted')
_PATTERNS = (r"^[A-Z]{3}-[0-9]{4}$", r"^[a-z]+$", r"^\d{3}-\d{2}$", r"^(yes|no|maybe)$")
_FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4")


class NamedSchema(NamedTuple):
    name: str
    schema: dict[str, Any]
    is_recursive: bool


def schemas() -> list[NamedSchema]:
    """Every twentieth is recursive."""
    drawn = [
        NamedSchema(f"drawn-{number}", _object(Random(number), depth=2), is_recursive=False)
        for number in range(COUNT - COUNT // 20)
    ]
    recursive = [
        NamedSchema(f"recursive-{number}", _recursive(Random(number)), is_recursive=True)
        for number in range(COUNT // 20)
    ]
    return drawn + recursive


def _object(random: Random, depth: int) -> dict[str, Any]:
    names = random.sample(_NAMES, random.randint(1, 5 if depth == 2 else 3))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _value(random, depth - 1) for name in names},
    }
    required = [name for name in names if random.random() < 0.8]
    if required:
        schema["required"] = required
    if random.random() < 0.4:
        schema["additionalProperties"] = False
    if random.random() < 0.2:
        schema |= {"title": "Model", "description": "What is wanted"}
    if depth == 2 and random.random() < 0.2:
        schema["$defs"] = {"Part": _object(random, 1)}
        schema["properties"][random.choice(names)] = {"$ref": "#/$defs/Part"}
    return schema


def _value(random: Random, depth: int) -> dict[str, Any]:
    makers = [_text, _text, _number, _choice]
    if depth > 0:
        makers += [_array, _array, _object, _union]
    maker = random.choice(makers)
    return maker(random, depth)


def _text(random: Random, depth: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {},
        {},
        {"maxLength": random.randint(5, 60)},
        {"minLength": 1, "maxLength": 20},
        {"pattern": random.choice(_PATTERNS)},
        {"format": random.choice(_FORMATS)},
        {"description": "as the user said it"},
    ]
    return {"type": "string", **random.choice(kinds)}


def _number(random: Random, depth: int) -> dict[str, Any]:
    bounds = {"minimum": random.randint(-5, 5), "maximum": random.randint(6, 500)}
    kinds: list[dict[str, Any]] = [
        {"type": "integer"},
        {"type": "integer", **bounds},
        {"type": "number"},
        {"type": "number", **bounds},
        {"type": ["integer", "null"]},
        {"type": "boolean"},
    ]
    return random.choice(kinds)


def _choice(random: Random, depth: int) -> dict[str, Any]:
    words = random.sample(_WORDS, random.randint(1, 4))
    return random.choice(
        [{"type": "string", "enum": words}, {"enum": [*words, 3, None]}, {"const": words[0]}]
    )


def _array(random: Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": _value(random, depth - 1)}
    if random.random() < 0.5:
        schema |= {"minItems": random.randint(0, 2), "maxItems": random.randint(2, 5)}
    return schema


def _union(random: Random, depth: int) -> dict[str, Any]:
    if random.random() < 0.5:
        return {"anyOf": [_value(random, depth - 1), {"type": "null"}]}
    parts = [
        {
            "type": "object",
            "properties": {"kind": {"const": kind}, "value": _text(random, 0)},
            "required": ["kind", "value"],
            "additionalProperties": False,
        }
        for kind in ("a", "b")
    ]
    return {"oneOf": parts}


def _recursive(random: Random) -> dict[str, Any]:
    node = {
        "type": "object",
        "properties": {
            "value": _value(random, 0),
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
        },
        "required": ["value", "children"],
        "additionalProperties": False,
    }
    return {"$defs": {"Node": node}, "$ref": "#/$defs/Node"}
