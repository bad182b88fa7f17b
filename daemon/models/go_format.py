"""Values as Go prints them, where clients read text that a Go program made (`parameters`)."""

from __future__ import annotations

import json

_SHORT = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def go_syntax(value: object) -> str:
    """Like `%#v`: strings quoted with escapes, numbers and bools plain."""
    return go_quote(value) if isinstance(value, str) else go_text(value)


def go_text(value: object) -> str:
    """Like `%v`, but whole numbers stay whole: 1048576 and never 1.048576e+06."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case None:
            return "<nil>"
        case int():
            return str(value)
        case float():
            return _float(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def _float(value: float) -> str:
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return repr(value)


def go_quote(text: str) -> str:
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character in _SHORT:
        return _SHORT[character]
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
