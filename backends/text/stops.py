"""Stop strings over a stream of text. Pure; owned by one conversation.

Promise: whatever pieces the text comes in, the same text comes out, nothing of a stop string with
it. Of several stop strings the one that is complete first wins; of those that are complete at the
same character, the longest.
"""

from __future__ import annotations

from collections.abc import Iterable


class _Pattern:
    """One stop string being looked for, character by character (Knuth, Morris, Pratt).

    `matched` is how many of its first characters the text ends with.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._fallback = _fallback_table(text)

    def advance(self, character: str) -> bool:
        """True when the pattern is complete with this character."""
        while self.matched and self.text[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        if self.text[self.matched] == character:
            self.matched += 1
        return self.matched == len(self.text)


def _fallback_table(text: str) -> list[int]:
    """For each length, the longest proper prefix that is also a suffix of that much of `text`."""
    table = [0] * len(text)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = table[length - 1]
        if text[index] == text[length]:
            length += 1
        table[index] = length
    return table


class StopMatcher:
    """`stop_text` is the stop string met, or "" so far; after it nothing more is let through."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in dict.fromkeys(stops) if stop]
        self._held = ""
        self.stop_text = ""

    def push(self, text: str) -> str:
        """What may be shown now. Text after a stop string is dropped."""
        if self.stop_text:
            return ""
        if not self._patterns:
            return text
        seen = self._held + text
        for end in range(len(self._held), len(seen)):
            complete = [pattern for pattern in self._patterns if pattern.advance(seen[end])]
            if complete:
                self.stop_text = max((pattern.text for pattern in complete), key=len)
                self._held = ""
                return seen[: end + 1 - len(self.stop_text)]
        keep = max(pattern.matched for pattern in self._patterns)
        shown = len(seen) - keep
        self._held = seen[shown:]
        return seen[:shown]

    def flush(self) -> str:
        """End of the stream: what was held back was no stop string."""
        held, self._held = self._held, ""
        return "" if self.stop_text else held
