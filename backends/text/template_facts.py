"""What the text of a chat template tells without rendering it. The daemon reads this module.

Standard library and the Go parser only; linear in the text, bounded by MAX_SOURCE. A template with
an error still has facts where they can be told; `error` then says what is wrong and in which line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from backends.text.go_template import GoTemplate, TemplateError

MAX_SOURCE = 1 << 20
THINKING_TAGS = ("<think>", "</think>")
# What other families put around thoughts; the last is harmony's channel.
_OTHER_THINKING_TAGS = (
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)

_GO_TOOL_RESULT = ('eq .Role "tool"', "tool_response", "TOOL_RESULTS")
_JINJA_TOOL_CALL = ("tool_call", "message.tool_calls")
_JINJA_TOOL_RESULT = re.compile(r"""['"](?:tool|ipython)['"]|tool_response|TOOL_RESULTS""")
_SPLITS_THINKING = re.compile(r"""content\.split\(\s*['"]</think>['"]\s*\)""")

_JINJA_OPENING = re.compile(r"\{[#%{]")
_JINJA_ENDRAW = re.compile(r"\{%[-+]?\s*+endraw\s*+[-+]?%\}")
# What matters inside a tag: whole strings, a quote that opens none, brackets, the closing marks.
_JINJA_ITEM = re.compile(
    r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|['"]|[({\[]|[)\]]|%\}|\}\}?""", re.DOTALL
)
_JINJA_STRING = re.compile(r"""'(?:[^'\\]|\\.)*+'?|"(?:[^"\\]|\\.)*+"?""", re.DOTALL)
_JINJA_NAME = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_JINJA_BLOCKS = frozenset({"for", "if", "macro", "call", "filter", "set", "generation", "block"})


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """`variables` are lower-cased; `error` is "" for a template that can be read."""

    dialect: Literal["go", "jinja"]
    variables: frozenset[str] = frozenset()
    thinking_tags: tuple[str, str] | None = None
    tool_call_tag: str = "{"
    has_tools: bool = False
    has_tool_round_trip: bool = False
    error: str = ""
    error_line: int = 0

    @property
    def capabilities(self) -> frozenset[str]:
        """Of "tools", "thinking" and "insert", those that this template gives a model."""
        has = {
            "tools": self.has_tools,
            "thinking": self.thinking_tags is not None,
            "insert": self.dialect == "go" and "suffix" in self.variables,
        }
        return frozenset(name for name, is_given in has.items() if is_given)


def go_facts(source: str) -> TemplateFacts:
    try:
        template = GoTemplate(source)
    except TemplateError as error:
        return TemplateFacts("go", error=str(error), error_line=error.line)
    names = template.variables
    return TemplateFacts(
        "go",
        variables=names,
        thinking_tags=template.thinking_tags,
        tool_call_tag=template.tool_call_tag,
        has_tools="tools" in names,
        has_tool_round_trip={"tools", "toolcalls"} <= names
        and any(mark in source for mark in _GO_TOOL_RESULT),
    )


def check_go_template(source: str) -> str:
    """What is wrong with a Go template, with its line; "" when it can be read."""
    return go_facts(source).error


def jinja_facts(source: str) -> TemplateFacts:
    if len(source) > MAX_SOURCE:
        error = f"the template is over {MAX_SOURCE} characters"
        return TemplateFacts("jinja", error=error, error_line=1)
    line, error = _jinja_error(source)
    return TemplateFacts(
        "jinja",
        variables=frozenset(_jinja_names(source)),
        thinking_tags=_jinja_thinking_tags(source),
        has_tools="tools" in source or "tool_call" in source,
        has_tool_round_trip=any(mark in source for mark in _JINJA_TOOL_CALL)
        and _JINJA_TOOL_RESULT.search(source) is not None,
        error=error,
        error_line=line,
    )


def prefers_jinja(go: TemplateFacts, jinja: TemplateFacts) -> bool:
    """Where a model has both: whether its Jinja template knows more than its Go template.

    True for strictly more capabilities without losing tool results, or for equal ones with tools
    where only the Jinja template can show a tool's result.
    """
    known_to_both = {"tools", "thinking"}
    go_has, jinja_has = go.capabilities & known_to_both, jinja.capabilities & known_to_both
    if jinja.error:
        return False
    if jinja_has > go_has:
        return jinja.has_tool_round_trip or not go.has_tool_round_trip
    gains_results = jinja.has_tool_round_trip and not go.has_tool_round_trip
    return jinja_has == go_has and "tools" in go_has and gains_results


def _jinja_thinking_tags(source: str) -> tuple[str, str] | None:
    if _is_jinja_thinking(source):
        return THINKING_TAGS
    return next((tags for tags in _OTHER_THINKING_TAGS if all(t in source for t in tags)), None)


def _is_jinja_thinking(source: str) -> bool:
    if all(tag in source for tag in THINKING_TAGS):
        return True
    is_foreign = "reasoning_content" in source or "<SPECIAL_12>" in source
    return not is_foreign and _SPLITS_THINKING.search(source) is not None


@dataclass(frozen=True, slots=True)
class _Tag:
    """`word` is a statement's first word, "" for an expression."""

    position: int
    content: str
    word: str


class _NotClosed(Exception):
    def __init__(self, position: int, what: str) -> None:
        super().__init__(f"{what} is not closed")
        self.position = position


def _jinja_tags(source: str) -> Iterator[_Tag]:
    """Every tag outside comments and raw text. Raises _NotClosed where reading cannot go on."""
    at = 0
    while opening := _JINJA_OPENING.search(source, at):
        start, kind = opening.start(), opening.group()
        if kind == "{#":
            at = source.find("#}", start + 2) + 2
            if at == 1:
                raise _NotClosed(start, "a comment")
            continue
        at = _tag_end(source, start, "}}" if kind == "{{" else "%}")
        content = source[start + 2 : at - 2].strip("-+ \t\r\n")
        word = content.split(maxsplit=1)[0] if kind == "{%" and content else ""
        if word == "raw":
            end = _JINJA_ENDRAW.search(source, at)
            if end is None:
                raise _NotClosed(start, "raw")
            at = end.end()
        else:
            yield _Tag(start, content, word)


def _tag_end(source: str, start: int, closing: str) -> int:
    """Behind the tag's closing mark; marks inside strings and brackets are none."""
    depth, at = 0, start + 2
    while item := _JINJA_ITEM.search(source, at):
        at, text = item.end(), item.group()
        if text in ("'", '"'):
            break
        if text == closing and depth == 0:
            return at
        if text in ("(", "[", "{"):
            depth += 1
        elif text in (")", "]") or text[0] == "}":
            depth -= 1
            at = item.start() + 1
        if depth < 0:
            break
    raise _NotClosed(start, "a tag")


def _jinja_names(source: str) -> set[str]:
    names: set[str] = set()
    try:
        for tag in _jinja_tags(source):
            names.update(_JINJA_NAME.findall(_JINJA_STRING.sub("''", tag.content)))
    except _NotClosed:
        pass
    return {name.lower() for name in names}


def _jinja_error(source: str) -> tuple[int, str]:
    """Line and text of the first structural error: what is not closed, or not open. (0, "")."""
    stack: list[_Tag] = []
    try:
        for tag in _jinja_tags(source):
            closed = tag.word.removeprefix("end")
            if tag.word in _JINJA_BLOCKS and not (tag.word == "set" and "=" in tag.content):
                stack.append(tag)
            elif closed != tag.word and closed in _JINJA_BLOCKS:
                if not stack or stack[-1].word != closed:
                    return _line(source, tag.position), f"unexpected {tag.word}"
                stack.pop()
    except _NotClosed as error:
        return _line(source, error.position), str(error)
    if stack:
        return _line(source, stack[-1].position), f"{stack[-1].word} is not closed"
    return 0, ""


def _line(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1
