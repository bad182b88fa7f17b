"""Tool calls in a model's text → `ToolCall`s: where they begin and end in the stream. Pure.

Promise: any cutting of the text gives the same calls and the same text. What looks like a call and
is none comes back as text, never as an error. How a call itself is written is the reader's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from backends.text.json_calls import Calls, read_json_calls
from backends.text.thinking import held_length
from backends.text.tools import Tools
from backends.types import ToolCall

MAX_CALL_CHARACTERS = 1 << 20
_BETWEEN_CALLS = " \t\r\n,;[]"

# (text, tools, index of the first call) → calls, and the text behind the last one.
CallReader = Callable[[str, Tools, int], tuple[Calls, str]]


class ToolCallParser(Protocol):
    def push(self, text: str) -> tuple[str, Calls]:
        """Text to show and calls that are complete."""
        ...

    def flush(self) -> tuple[str, Calls]:
        """The same at the end of the stream."""
        ...


class TaggedCalls:
    """Calls between two tags; with `closing` "" up to the end. Other text passes.

    White space between two calls belongs to the mark-up, not to the answer.
    """

    def __init__(
        self, opening: str, closing: str, tools: Tools, read: CallReader = read_json_calls
    ) -> None:
        self._opening = opening
        self._closing = closing
        self._tools = tools
        self._read = read
        self._held = ""
        self._is_inside = False
        self._count = 0

    def push(self, text: str) -> tuple[str, Calls]:
        searched = len(self._held) - len(self._closing)
        self._held += text
        shown: list[str] = []
        calls: list[ToolCall] = []
        while self._advance(max(searched, 0), shown, calls):
            searched = 0
        return "".join(shown), tuple(calls)

    def flush(self) -> tuple[str, Calls]:
        rest, self._held = self._held, ""
        if not self._is_inside:
            return ("" if self._count and not rest.strip() else rest), ()
        self._is_inside = False
        calls = self._calls(rest)
        return ("" if calls else self._opening + rest), calls

    def _advance(self, searched: int, shown: list[str], calls: list[ToolCall]) -> bool:
        """One tag further, if it is there yet."""
        if not self._is_inside:
            before, tag, after = self._held.partition(self._opening)
            if not tag:
                shown.append(self._take_plain())
                return False
            if before.strip() or not self._count:
                shown.append(before)
            self._held, self._is_inside = after, True
            return True
        end = self._held.find(self._closing, searched) if self._closing else -1
        if end < 0:
            if len(self._held) > MAX_CALL_CHARACTERS:
                shown.append(self._give_up())
            return False
        body, self._held = self._held[:end], self._held[end + len(self._closing) :]
        self._is_inside = False
        found = self._calls(body)
        calls += found
        if not found:
            shown.append(self._opening + body + self._closing)
        return True

    def _take_plain(self) -> str:
        if self._count and not self._held.strip():
            return ""
        cut = len(self._held) - held_length(self._held, self._opening)
        plain = self._held[:cut]
        if self._count and not plain.strip():
            return ""
        self._held = self._held[cut:]
        return plain

    def _give_up(self) -> str:
        """Too long for a call: text it was."""
        text, self._held = self._opening + self._held, ""
        self._is_inside = False
        return text

    def _calls(self, body: str) -> Calls:
        calls, _ = self._read(body, self._tools, self._count)
        self._count += len(calls)
        return calls


class LeadingCalls:
    """Answers that are a call from their first character on: `{` or `[`, maybe within `tags`."""

    def __init__(
        self,
        brackets: str,
        tools: Tools,
        tags: tuple[str, str] = ("", ""),
        read: CallReader = read_json_calls,
    ) -> None:
        self._brackets = brackets
        self._tools = tools
        self._opening, self._closing = tags
        self._read = read
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> tuple[str, Calls]:
        if self._is_text:
            return text, ()
        self._held += text
        if self._may_be_call() and len(self._held) <= MAX_CALL_CHARACTERS:
            return "", ()
        self._is_text = True
        shown, self._held = self._held, ""
        return shown, ()

    def flush(self) -> tuple[str, Calls]:
        whole, self._held = self._held, ""
        if self._is_text:
            return whole, ()
        body = whole.strip().removeprefix(self._opening).removesuffix(self._closing)
        calls, rest = self._read(body, self._tools, 0)
        return (rest.strip(_BETWEEN_CALLS), calls) if calls else (whole, ())

    def _may_be_call(self) -> bool:
        text = self._held[: len(self._opening) + 64].lstrip()
        if self._opening and self._opening.startswith(text):
            return True
        text = text.removeprefix(self._opening).lstrip()
        return not text or text[0] in self._brackets
