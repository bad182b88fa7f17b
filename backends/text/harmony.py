"""The channels of gpt-oss ("harmony"): analysis is thought, final is the answer, the rest are calls.

Promise: any cutting of the text gives the same result; a call that cannot be read comes back as
text. An answer is a row of messages, each `role, channel, recipient` up to `<|message|>`, then its
text up to a mark that ends it. Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from backends.text.json_calls import Calls, json_value
from backends.text.thinking import held_length
from backends.text.tool_calls import MAX_CALL_CHARACTERS
from backends.text.tools import Tools, make_call

MARKS = ("<|channel|>", "<|message|>")
_START, _MESSAGE = "<|start|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", _START)
_END = re.compile("|".join(map(re.escape, _ENDS)))
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=functions\.([\w.\-]+)")
_HEADER_BEGINS = ("<|channel|>", _MESSAGE, _START, "assistant", "to=")
_MAX_HEADER_CHARACTERS = 512


class Shown(NamedTuple):
    thinking: str = ""
    text: str = ""
    calls: Calls = ()


class HarmonyParser:
    """`prompt` tells where the answer begins: after `<|start|>assistant`, or inside a message."""

    def __init__(self, prompt: str, tools: Tools) -> None:
        self._tools = tools
        self._held = ""
        self._count = 0
        self._channel = "final"
        self._recipient = ""
        self._is_in_header = True
        self._has_begun = False
        self._prefix_length = 0
        _, mark, begun = prompt.rpartition(_START)
        if mark:
            self._held = begun.rstrip()
            if not self._open_message():
                self._prefix_length = len(self._held)

    def push(self, text: str) -> Shown:
        self._held += text
        thinking: list[str] = []
        shown: list[str] = []
        calls: Calls = ()
        while (piece := self._advance()) is not None:
            thinking.append(piece.thinking)
            shown.append(piece.text)
            calls += piece.calls
        return Shown("".join(thinking), "".join(shown), calls)

    def flush(self) -> Shown:
        rest, self._held = self._held, ""
        if not self._is_in_header:
            return self._message(rest)
        return Shown() if self._has_begun else Shown(text=rest[self._prefix_length :])

    def _advance(self) -> Shown | None:
        """One mark further, or what can be shown of an open message; None for nothing more."""
        if self._is_in_header:
            return self._header()
        end = _END.search(self._held)
        if end is not None:
            body, self._held = self._held[: end.start()], self._held[end.end() :]
            self._is_in_header = True
            return self._message(body)
        if self._recipient and len(self._held) <= MAX_CALL_CHARACTERS:
            return None
        self._recipient = ""
        keep = max(held_length(self._held, mark) for mark in _ENDS)
        body = self._held[: len(self._held) - keep]
        self._held = self._held[len(body) :]
        return self._message(body) if body else None

    def _header(self) -> Shown | None:
        """Up to `<|message|>`; a text that begins otherwise is the answer itself."""
        text = self._held[self._prefix_length :].lstrip()
        if not text:
            return None
        is_header = any(
            text.startswith(begin) or begin.startswith(text) for begin in _HEADER_BEGINS
        )
        if is_header and self._open_message():
            return Shown()
        if is_header and len(self._held) < _MAX_HEADER_CHARACTERS + len(_MESSAGE):
            return None
        self._held = self._held[self._prefix_length :]
        self._enter("final", "")
        return Shown()

    def _open_message(self) -> bool:
        header, mark, rest = self._held.partition(_MESSAGE)
        if not mark or len(header) > _MAX_HEADER_CHARACTERS:
            return False
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._held = rest
        self._enter(
            channel.group(1) if channel else "final", recipient.group(1) if recipient else ""
        )
        return True

    def _enter(self, channel: str, recipient: str) -> None:
        self._channel = channel
        self._recipient = recipient if recipient in self._tools.parameters else ""
        self._is_in_header, self._has_begun, self._prefix_length = False, True, 0

    def _message(self, body: str) -> Shown:
        """A whole call, or a part of anything else."""
        if self._recipient and len(body) <= MAX_CALL_CHARACTERS:
            arguments = json_value(body)
            call = None
            if isinstance(arguments, dict):
                call = make_call(self._recipient, arguments, self._count)
            if call is not None:
                self._count += 1
                return Shown(calls=(call,))
        elif self._channel == "analysis":
            return Shown(thinking=body)
        return Shown(text=body)
