"""`tools`, `tool_choice` and `parallel_tool_calls`: what a model is offered and what it must do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from daemon.errors import Invalid

_MODES = ("none", "auto", "required")


class ToolWish(msgspec.Struct, frozen=True, kw_only=True):
    """`offered` is JSON text of each tool; the answer must be calls of `required`, if there are any.

    Without `parallel` only the first call of an answer counts. `unheld`: a tool whose arguments the
    client wants held to their schema, which happens only where a call is required.
    """

    offered: tuple[bytes, ...] = ()
    required: tuple[str, ...] = ()
    parallel: bool = True
    unheld: bool = False


def read_tools(tools: Iterable[Mapping[str, Any]], choice: Any, parallel: bool) -> ToolWish:
    """Raises Invalid for tools and choices that cannot be honoured."""
    functions = {_name(tool): tool for tool in tools}
    mode, names = _read_choice(choice)
    for name in names:
        if name not in functions:
            raise Invalid(f'tool_choice: there is no tool "{name}"')
    offered = {name: functions[name] for name in names or functions}
    if mode == "none":
        return ToolWish()
    if mode == "required" and not offered:
        raise Invalid('tool_choice "required" needs tools')
    is_strict = any(tool["function"].get("strict") for tool in offered.values())
    return ToolWish(
        offered=tuple(map(_text, offered.values())),
        required=tuple(offered) if mode == "required" else (),
        parallel=parallel,
        unheld=is_strict and mode != "required",
    )


def _name(tool: Mapping[str, Any]) -> str:
    if tool.get("type", "function") != "function":
        raise Invalid(f'tools of type "{tool["type"]}" are not supported')
    function = tool.get("function")
    name = cast("dict[str, Any]", function).get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Invalid("a tool needs a function with a name")
    return name


def _text(tool: Mapping[str, Any]) -> bytes:
    """As models are shown it: `strict` is between client and server."""
    function = {key: value for key, value in tool["function"].items() if key != "strict"}
    return msgspec.json.encode({"type": "function", "function": function})


def _read_choice(choice: Any) -> tuple[str, tuple[str, ...]]:
    """The mode, and the names that it is about (none: all). Raises Invalid."""
    if choice is None:
        return "auto", ()
    if isinstance(choice, str) and choice in _MODES:
        return choice, ()
    if isinstance(choice, dict):
        fields = cast("dict[str, Any]", choice)
        match fields.get("type"):
            case "function":
                return "required", (_function_name(fields),)
            case "allowed_tools":
                return _allowed(fields.get("allowed_tools", fields))
            case _:
                pass
    raise Invalid(
        'tool_choice must be "none", "auto", "required", a function or allowed_tools; '
        f"not supported: {msgspec.json.encode(choice).decode()}"
    )


def _function_name(fields: Mapping[str, Any]) -> str:
    """Beside `type`, or within `function`: both are written."""
    function = fields.get("function", fields)
    name = cast("dict[str, Any]", function).get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Invalid("tool_choice names no function")
    return name


def _allowed(fields: Any) -> tuple[str, tuple[str, ...]]:
    try:
        mode, tools = fields["mode"], fields["tools"]
        names = tuple(_function_name(tool) for tool in tools)
    except (KeyError, TypeError, AttributeError):
        raise Invalid('tool_choice "allowed_tools" needs "mode" and "tools"') from None
    if mode not in ("auto", "required") or not names:
        raise Invalid('tool_choice "allowed_tools" needs "mode" and "tools"')
    return mode, names
