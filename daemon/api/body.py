"""A request body becomes one typed Struct, as leniently as Ollama's clients are used to.

Only the first JSON value counts; known keys match in any letter case, the last of several wins;
null is "not sent"; unknown keys are ignored; the content type does not matter. Wrong types are 400.
"""

from __future__ import annotations

import json
import types
import typing
from functools import cache
from typing import Any, TypeVar

import msgspec

from daemon.errors import Invalid

_T = TypeVar("_T", bound=msgspec.Struct)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"invalid character {name[0]!r} looking for beginning of value")


_patient = json.JSONDecoder(parse_constant=_refuse_constant)


def _read_patiently(body: bytes) -> Any:
    """What msgspec refuses but Go's decoder takes: bytes after the value, halves of surrogate pairs."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    value, _ = _patient.raw_decode(text)
    plain = json.dumps(value, ensure_ascii=False)
    return msgspec.json.decode(plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def first_json_value(body: bytes) -> Any:
    """The first JSON value of `body`. Raises Invalid."""
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise Invalid("exceeded max depth") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = str(error)
    try:
        return _read_patiently(body)
    except (ValueError, RecursionError):
        raise Invalid(problem) from None


def _struct_within(annotation: Any) -> type[msgspec.Struct] | None:
    """The Struct that `X`, `X | None`, `tuple[X, ...]` or `list[X]` holds, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(
        annotation
    ):
        for argument in typing.get_args(annotation):
            if found := _struct_within(argument):
                return found
    return None


@cache
def _known_keys(kind: type[msgspec.Struct]) -> dict[str, tuple[str, type[msgspec.Struct] | None]]:
    """Folded key → (the key as declared, the Struct inside its value)."""
    annotations = typing.get_type_hints(kind)
    return {
        field.encode_name.casefold(): (field.encode_name, _struct_within(annotations[field.name]))
        for field in msgspec.structs.fields(kind)
    }


def _with_declared_keys(value: Any, kind: type[msgspec.Struct]) -> Any:
    """`value` with only known, non-null keys, spelled as declared, at every level that has a Struct."""
    if isinstance(value, list):
        items = typing.cast("list[Any]", value)
        return [_with_declared_keys(item, kind) for item in items]
    if not isinstance(value, dict):
        return value
    known = _known_keys(kind)
    kept: dict[str, Any] = {}
    for key, content in typing.cast("dict[str, Any]", value).items():
        name, inner = known.get(key.casefold(), ("", None))
        if name and content is not None:
            kept[name] = _with_declared_keys(content, inner) if inner else content
    return kept


def read_struct(body: bytes, kind: type[_T]) -> _T:
    """Raises Invalid: `missing request body`, the decoder's message, or what has which wrong type."""
    if not body.strip():
        raise Invalid("missing request body")
    return as_struct(first_json_value(body), kind)


def as_struct(value: Any, kind: type[_T]) -> _T:
    """A decoded JSON value as the Struct `kind`, null as an empty one. Raises Invalid."""
    try:
        return msgspec.convert({} if value is None else _with_declared_keys(value, kind), kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Invalid(str(error)) from None
