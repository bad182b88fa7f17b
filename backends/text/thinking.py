"""Splits what a model thinks from what it answers, by the tags around its thoughts. Pure.

Promise: any cutting of the text gives the same two texts. Only thoughts at the very beginning are
split off; where other text comes first, everything is the answer, unchanged. Nothing is lost but
the tags and the white space around them.
"""

from __future__ import annotations

from typing import Literal

_State = Literal["looking", "entering", "thinking", "leaving", "answering"]


def held_length(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)


class ThinkingSplitter:
    """`starts_inside`: the prompt ended with the opening tag, so the first text is thought already."""

    def __init__(self, opening: str, closing: str, *, starts_inside: bool = False) -> None:
        self._opening = opening
        self._closing = closing
        self._state: _State = "entering" if starts_inside else "looking"
        self._held = ""

    @property
    def is_answering(self) -> bool:
        """True as soon as nothing that follows can be thought."""
        return self._state in ("leaving", "answering")

    def push(self, text: str) -> tuple[str, str]:
        """(thinking, answer) that can be told from `text` and what was held back."""
        self._held += text
        if self._state == "looking":
            self._look()
        if self._state == "entering":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "thinking"
        thinking = self._take_thinking() if self._state == "thinking" else ""
        if self._state == "leaving":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answering"
        if self._state != "answering":
            return thinking, ""
        answer, self._held = self._held, ""
        return thinking, answer

    def flush(self) -> tuple[str, str]:
        """End of the stream: the beginning of a tag that never came is ordinary text."""
        rest, self._held = self._held, ""
        return (rest, "") if self._state == "thinking" else ("", rest)

    def _look(self) -> None:
        text = self._held.lstrip()
        if text.startswith(self._opening):
            self._held = text[len(self._opening) :]
            self._state = "entering"
        elif not self._opening.startswith(text):
            self._state = "answering"

    def _take_thinking(self) -> str:
        thinking, tag, rest = self._held.partition(self._closing)
        if tag:
            self._held = rest
            self._state = "leaving"
            return thinking
        shown = len(self._held) - held_length(self._held, self._closing)
        thinking, self._held = self._held[:shown], self._held[shown:]
        return thinking


def starts_inside(prompt: str, opening: str) -> bool:
    """Whether the rendered prompt leaves the model in the middle of its thoughts."""
    return prompt.rstrip().endswith(opening)
