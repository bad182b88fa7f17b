"""Go template text to tokens: literal text, and the items between `{{` and `}}`.

Trim markers are applied here, comments vanish here. Standard library only.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from backends.text.go_template.errors import TemplateSyntaxError

# Published templates have up to some 20 000; reading this many takes well under a second.
MAX_SOURCE_CHARACTERS = 1 << 17
_TRIMMED = " \t\r\n"
_COMMENT = re.compile(r"(-[ \t\r\n]+)?/\*.*?\*/([ \t\r\n]+-)?\}\}", re.DOTALL)
_ITEM = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<close>\}\})
    |(?P<declare>:=)
    |(?P<assign>=)
    |(?P<punctuation>[|(),])
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<raw>`[^`]*`)
    |(?P<char>'(?:[^'\\\n]|\\.)+')
    |(?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|(?:\d[\d_]*)?\.?\d[\d_]*(?:[eE][+-]?\d+)?))
    |(?P<variable>\$\w*)
    |(?P<field>\.[^\W\d]\w*)
    |(?P<dot>\.)
    |(?P<word>[^\W\d]\w*)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is "text" or a group name of the item pattern; "open" begins an action."""

    kind: str
    value: str
    line: int


def tokenize(source: str) -> list[Token]:
    """Raises TemplateSyntaxError for what cannot be an action."""
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise TemplateSyntaxError(1, f"the template is over {MAX_SOURCE_CHARACTERS} characters")
    return _Lexer(source).run()


class _Lexer:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._line = 1
        self._tokens: list[Token] = []

    def run(self) -> list[Token]:
        trim_left = False
        while self._at < len(self._source):
            opened = self._source.find("{{", self._at)
            end = len(self._source) if opened < 0 else opened
            self._text(end, trim_left, self._trims_before(opened))
            if opened < 0:
                break
            trim_left = self._action()
        return self._tokens

    def _trims_before(self, opened: int) -> bool:
        after = self._source[opened + 2 : opened + 4]
        return opened >= 0 and len(after) == 2 and after[0] == "-" and after[1] in _TRIMMED

    def _text(self, end: int, trim_left: bool, trim_right: bool) -> None:
        raw = self._source[self._at : end]
        text = raw.lstrip(_TRIMMED) if trim_left else raw
        text = text.rstrip(_TRIMMED) if trim_right else text
        if text:
            self._tokens.append(Token("text", text, self._line))
        self._advance(end)

    def _advance(self, end: int) -> None:
        self._line += self._source.count("\n", self._at, end)
        self._at = end

    def _action(self) -> bool:
        """One `{{ … }}`; whether the text after it is trimmed."""
        self._advance(self._at + 2)
        if comment := _COMMENT.match(self._source, self._at):
            self._advance(comment.end())
            return comment.group(2) is not None
        if self._trims_before(self._at - 2):
            self._at += 1
        self._tokens.append(Token("open", "", self._line))
        return self._items()

    def _items(self) -> bool:
        while True:
            if closing := re.compile(r"[ \t\r\n]+-\}\}").match(self._source, self._at):
                self._advance(closing.end())
                self._tokens.append(Token("close", "", self._line))
                return True
            match = _ITEM.match(self._source, self._at)
            if match is None:
                raise TemplateSyntaxError(self._line, self._complaint())
            kind = match.lastgroup or ""
            self._tokens.append(Token(kind, match.group(), self._line))
            self._advance(match.end())
            if kind == "close":
                return False

    def _complaint(self) -> str:
        if self._at >= len(self._source):
            return "unclosed action"
        character = self._source[self._at]
        if character in "\"`'":
            return "unterminated quoted string"
        return f"unexpected {character!r} in action"


def string_value(token: Token) -> str:
    """What a quoted literal stands for. Raises TemplateSyntaxError for a bad escape."""
    if token.kind == "raw":
        return token.value[1:-1]
    try:
        value = ast.literal_eval(token.value)
    except (ValueError, SyntaxError) as error:
        raise TemplateSyntaxError(token.line, f"bad string {token.value}") from error
    return str(value)


def number_value(token: Token) -> int | float:
    text = token.value.replace("_", "")
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError as error:
        raise TemplateSyntaxError(token.line, f"bad number syntax: {token.value}") from error
