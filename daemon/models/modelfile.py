"""The Modelfile grammar: text to commands and back. Touches no disk and no store.

A line starts with a command word; its value is the rest of the line, `"…"` or `\"\"\"…\"\"\"`, and quoted
values may span lines. A value is complete at the first line end where what was collected either
does not start with a quote or ends with the same kind of quote. Nothing is escaped.
"""

from __future__ import annotations

import codecs
import re

import msgspec

COMMANDS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
ROLES = ("system", "user", "assistant")
_SEMVER = re.compile(r"v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_KEY = re.compile(r"[A-Za-z0-9_]*")
_NEWLINES = "\r\n"
_BLANKS = " \t"


class ModelfileError(ValueError):
    """The text is no Modelfile; the message is what the field's clients expect to read."""


class Command(msgspec.Struct, frozen=True):
    """`key` is the parameter's name or the message's role, else empty."""

    name: str
    value: str
    key: str = ""


class Modelfile(msgspec.Struct, frozen=True):
    """All commands in their order."""

    commands: tuple[Command, ...]

    def values(self, name: str) -> list[str]:
        return [command.value for command in self.commands if command.name == name]

    def last(self, name: str) -> str:
        return (self.values(name) or [""])[-1]

    @property
    def parameters(self) -> list[tuple[str, str]]:
        return [(c.key, c.value) for c in self.commands if c.name == "parameter"]

    @property
    def messages(self) -> list[tuple[str, str]]:
        return [(c.key, c.value) for c in self.commands if c.name == "message"]


def decode_text(data: bytes) -> str:
    """UTF-8 with or without a mark, or UTF-16 with one. Raises ModelfileError."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ModelfileError(f"the Modelfile is not text: {error}") from error


def parse(text: str) -> Modelfile:
    """Raises ModelfileError with the line where a command cannot be read."""
    commands = list(_Scanner(_printable(text)).commands())
    if not any(command.name == "from" for command in commands):
        raise ModelfileError("no FROM line")
    for command in commands:
        if command.name == "requires" and not _SEMVER.fullmatch(command.value):
            raise ModelfileError("requires must be a valid semver (e.g. 0.14.0)")
    return Modelfile(tuple(commands))


def _printable(text: str) -> str:
    """Zero-width marks, no-break spaces and controls vanish, as every reader of this format has it."""
    return "".join(c for c in text if c.isprintable() or c in "\t\r\n")


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def commands(self) -> list[Command]:
        found: list[Command] = []
        while self._skip_to_command():
            found.append(self._command())
        return found

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _skip_to_command(self) -> bool:
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "#":
                self._at = self._line_end(self._at)
            elif character in _BLANKS or character in _NEWLINES:
                self._at += 1
            else:
                return True
        return False

    def _line_end(self, start: int) -> int:
        ends = [at for at in (self._text.find(c, start) for c in _NEWLINES) if at >= 0]
        return min(ends, default=len(self._text))

    def _command(self) -> Command:
        word = self._word(re.compile(r"[A-Za-z]*"))
        if self._at == len(self._text) and word.lower() in COMMANDS:
            raise ModelfileError("unexpected EOF")
        if word.lower() not in COMMANDS or self._text[self._at] not in _BLANKS:
            listed = ", ".join(f'"{name}"' for name in COMMANDS[:-1])
            raise ModelfileError(
                f'(line {self._line()}): command must be one of {listed}, or "{COMMANDS[-1]}"'
            )
        self._at += 1
        name = word.lower()
        key = self._key(name) if name in ("parameter", "message") else ""
        value = self._value()
        return Command(name, value.removeprefix("v") if name == "requires" else value, key)

    def _word(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        word = match.group() if match else ""
        self._at += len(word)
        return word

    def _key(self, name: str) -> str:
        key = self._word(_KEY if name == "parameter" else re.compile(r"[A-Za-z]*"))
        if self._at == len(self._text):
            raise ModelfileError("unexpected EOF")
        if self._text[self._at] not in _BLANKS:
            raise ModelfileError(f"unexpected EOF: {key}")
        self._at += 1
        if name == "message" and key not in ROLES:
            line = self._line()
            raise ModelfileError(
                f'(line {line}): message role must be one of "system", "user", or "assistant"'
            )
        return key

    def _value(self) -> str:
        end = self._at
        while True:
            end = self._line_end(end)
            value = _unquote(self._text[self._at : end].strip(_BLANKS + _NEWLINES))
            if value is not None:
                self._at = end
                return value
            if end == len(self._text):
                raise ModelfileError("unexpected EOF")
            end += 1


def _unquote(text: str) -> str | None:
    """One layer of quotes removed; None while a quoted value is not closed."""
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = text.endswith(quote) and len(text) >= 2 * len(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text


def quote(value: str) -> str:
    """A value as a Modelfile line carries it: quoted only where reading it back needs that."""
    is_one_line = not any(newline in value for newline in _NEWLINES)
    if value and value == value.strip() and not value.startswith('"') and is_one_line:
        return value
    return f'"""{value}"""' if '"' in value else f'"{value}"'


def render(commands: list[Command]) -> str:
    """The text of these commands, one a line, each with its newline."""
    lines: list[str] = []
    for command in commands:
        words = [command.name.upper(), command.key, quote(command.value)]
        lines.append(" ".join(word for word in words if word) + "\n")
    return "".join(lines)
