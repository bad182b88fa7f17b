"""The tools of one request, as the parsers of answers need them: names, and types of parameters."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from backends.types import EngineError, ToolCall

_ID_LETTERS = string.ascii_lowercase + string.digits


class Tools(msgspec.Struct, frozen=True):
    """`parameters` holds each tool's JSON Schema by name, in the request's order."""

    parameters: Mapping[str, Mapping[str, Any]] = {}

    @classmethod
    def read(cls, tools: Iterable[bytes]) -> Tools:
        """Tools without a name cannot be called and are left out. Raises EngineError("invalid")."""
        found: dict[str, Mapping[str, Any]] = {}
        for data in tools:
            function = _object(_decoded(data).get("function"))
            name = function.get("name")
            if isinstance(name, str) and name:
                found[name] = _object(function.get("parameters"))
        return cls(found)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.parameters)

    def types(self, name: str, parameter: str) -> tuple[str, ...]:
        """JSON types that the tool's schema gives this parameter; () where it says nothing."""
        properties = _object(self.parameters.get(name, {}).get("properties"))
        kinds = _object(properties.get(parameter)).get("type")
        if isinstance(kinds, str):
            return (kinds,)
        return tuple(map(str, kinds)) if isinstance(kinds, list) else ()


def make_call(name: str, arguments: Mapping[str, Any], index: int) -> ToolCall | None:
    """With an id of its own; the arguments keep their order. None for what JSON cannot say."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        return None
    call_id = "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    return ToolCall(id=call_id, name=name, arguments=text.encode("utf-8", "replace"), index=index)


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EngineError("invalid", f"a tool is no JSON object: {error}") from error


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
