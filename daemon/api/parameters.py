"""PARAMETER lines and `/set parameter`: option values written as text, to the types options have."""

from __future__ import annotations

from collections.abc import Iterable

from daemon.api.options import OPTIONS
from daemon.models.modelfile import ModelfileError

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
# Gone from every current server; a Modelfile that still names them is fine without them.
DEPRECATED = frozenset(
    {
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
    }
)

ParameterValue = int | float | bool | list[str]


def typed_parameters(pairs: Iterable[tuple[str, str]]) -> dict[str, ParameterValue]:
    """One value per name, the last wins; `stop` gathers. Raises ModelfileError."""
    typed: dict[str, ParameterValue] = {}
    for name, text in pairs:
        if name in DEPRECATED:
            continue
        value = _typed(name, text)
        held = typed.get(name)
        if isinstance(value, list) and isinstance(held, list):
            value = held + value
        typed[name] = value
    return typed


def _typed(name: str, text: str) -> ParameterValue:
    option = OPTIONS.get(name)
    match option.type if option else "":
        case "integer":
            return _parsed(int, text, "int")
        case "float32":
            return _parsed(float, text, "float")
        case "boolean":
            if text in _TRUE or text in _FALSE:
                return text in _TRUE
            raise ModelfileError(f"invalid bool value [{text}]")
        case "strings":
            return [text]
        case _:
            raise ModelfileError(f"unknown parameter '{name}'")


def _parsed(kind: type[int | float], text: str, word: str) -> int | float:
    try:
        # Underscores are Python's own; no other reader of Modelfiles takes them.
        return kind(text.replace("_", "?"))
    except ValueError as error:
        raise ModelfileError(f"invalid {word} value [{text}]") from error
