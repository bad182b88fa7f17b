"""Tool calls whose arguments stand between tags of their own, one by one. Pure.

The values are plain text; the tool's schema says which of them are numbers, lists or objects.
"""

from __future__ import annotations

import re
from typing import Any

from backends.text.json_calls import Calls, json_value
from backends.text.tools import Tools, make_call

_QWEN_ARGUMENT = re.compile(r"\s*<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)
_GLM_ARGUMENT = re.compile(
    r"\s*<arg_key>([^<]*)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL
)


def read_qwen_calls(text: str, tools: Tools, first_index: int = 0) -> tuple[Calls, str]:
    """`<function=f><parameter=a>1</parameter></function>`, one call."""
    whole = text.strip()
    name, end, body = whole.removeprefix("<function=").partition(">")
    if not end or not whole.startswith("<function="):
        return (), text
    arguments = _arguments(body.removesuffix("</function>"), name, tools, _QWEN_ARGUMENT)
    return _one_call(name, arguments, text, first_index)


def read_glm_calls(text: str, tools: Tools, first_index: int = 0) -> tuple[Calls, str]:
    """`f <arg_key>a</arg_key><arg_value>1</arg_value>`, one call."""
    name, tag, body = text.strip().partition("<arg_key>")
    name = name.strip()
    return _one_call(name, _arguments(tag + body, name, tools, _GLM_ARGUMENT), text, first_index)


def _one_call(
    name: str, arguments: dict[str, Any] | None, text: str, index: int
) -> tuple[Calls, str]:
    call = None if arguments is None else make_call(name, arguments, index)
    return ((), text) if call is None else ((call,), "")


def _arguments(
    body: str, name: str, tools: Tools, pattern: re.Pattern[str]
) -> dict[str, Any] | None:
    """None for an unknown tool, and where anything in the body is not understood."""
    if name not in tools.parameters:
        return None
    arguments: dict[str, Any] = {}
    body = body.rstrip()
    at = 0
    while at < len(body):
        pair = pattern.match(body, at)
        if pair is None:
            return None
        key, value = pair.group(1).strip(), pair.group(2)
        arguments[key] = _typed(value, tools.types(name, key))
        at = pair.end()
    return arguments


def _typed(value: str, types: tuple[str, ...]) -> Any:
    """A text stays text where the schema allows one or says nothing."""
    if not types or "string" in types:
        return value
    decoded = json_value(value)
    is_null = decoded is None and value.strip() == "null"
    return decoded if decoded is not None or is_null else value
