"""The shortest way for a constrained answer to end well, and when to begin to take it.

An answer that runs into its limit in the middle of a document is worth nothing to who asked for the
document. So, shortly before the limit, the ids that end it soonest become the only ones allowed: the
text in progress is closed, what is still demanded gets its shortest value. Until then nothing is
disturbed. The way is found by trying on a copy of the grammar's state, in bounded time; it knows
what closes things in JSON, everything else it asks the grammar.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

_MAX_IDS = 800
# A character in the middle of which nothing can be closed is whole by then.
_REST_OF_CHARACTER = 3
# Between values: what ends or shortens a document comes first, then the shortest values.
_STRUCTURE = b'}],:0123456789ntf"[{-.eEalsru+ \n\r\t'
# In a text that may not end yet, such as an address or a date: what parts it, then what fills it.
_TEXT = b"@-:./_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \\+"
# After a string has been closed nothing but these may come, whatever the schema is.
_AFTER_A_STRING = b",:}] \n\r\t"
_FREE = b"#q"
# How far ahead of its end an answer is looked at, and how much room is kept for what it opens yet.
_LOOK_AHEAD = 16
_LEAST_MARGIN = 8

Bits = NDArray[np.uint8]


class LandingTable:
    """What landing must know of a vocabulary. Made once for a compiler."""

    def __init__(self, pieces: Sequence[bytes], hidden: frozenset[int], end_ids: frozenset[int]):
        size = -(-len(pieces) // 8)
        single: dict[bytes, int] = {}
        content = np.zeros(size * 8, np.bool_)
        letters = np.zeros(size * 8, np.bool_)
        for token_id, piece in enumerate(pieces):
            if not piece or token_id in hidden:
                continue
            if len(piece) == 1:
                single.setdefault(piece, token_id)
            content[token_id] = piece[0] not in _AFTER_A_STRING
            letters[token_id] = piece[0] not in _STRUCTURE
        self.structure = [single[bytes([b])] for b in _STRUCTURE if bytes([b]) in single]
        self.text = [single[bytes([b])] for b in _TEXT if bytes([b]) in single]
        self.quote_id = single.get(b'"', -1)
        self.free_ids = [single[bytes([b])] for b in _FREE if bytes([b]) in single]
        self.end_ids = sorted(end_ids)
        self.content = np.packbits(content, bitorder="little")
        self.letters = np.packbits(letters, bitorder="little")


def shortest_end(
    matcher: LLMatcher, table: LandingTable, closings: Sequence[Sequence[int]]
) -> list[int] | None:
    """Ids that take a copy of `matcher` to where it may end, that end not included; None: not found.

    `closings` are the ids of texts that may have to come first, such as the tag that ends a thought.
    """
    copy = matcher.deep_copy()
    path: list[int] = []
    used: Counter[int] = Counter()
    while len(path) < _MAX_IDS:
        if len(path) <= _REST_OF_CHARACTER:
            closing = next((c for c in closings if _leaves_free_text(copy, table, c)), [])
            copy.consume_tokens(list(closing))
            path += closing
        if forced := copy.compute_ff_tokens():
            if not copy.consume_tokens(forced):
                return None
            path += forced
            continue
        mask = np.frombuffer(copy.compute_bitmask(), np.uint8)
        if copy.is_error():
            return None
        if any(_has(mask, token_id) for token_id in table.end_ids):
            return path
        token_id = _next(copy, mask, table, used)
        if token_id is None or not copy.consume_token(token_id):
            return None
        path.append(token_id)
    return None


def _next(matcher: LLMatcher, mask: Bits, table: LandingTable, used: Counter[int]) -> int | None:
    """In texts the byte that was used least, so that none is tried for ever."""
    if _has(mask, table.quote_id) and _closes_string(matcher, table):
        used.clear()
        return table.quote_id
    if not _meets(mask, table.letters):
        found = next((i for i in table.structure if _has(mask, i)), None)
    else:
        found = min((i for i in table.text if _has(mask, i)), key=used.__getitem__, default=None)
    if found is None:
        rest = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        found = int(rest[0]) if rest.size else None
    if found is not None:
        used[found] += 1
    return found


def _closes_string(matcher: LLMatcher, table: LandingTable) -> bool:
    """Whether a quote here ends a string; one that begins a string can be followed by content."""
    copy = matcher.deep_copy()
    if not copy.consume_token(table.quote_id):
        return False
    mask = np.frombuffer(copy.compute_bitmask(), np.uint8)
    return not _meets(mask, table.content)


def _leaves_free_text(matcher: LLMatcher, table: LandingTable, closing: Sequence[int]) -> bool:
    copy = matcher.deep_copy()
    if copy.try_consume_tokens(list(closing)) < len(closing):
        return False
    mask = np.frombuffer(copy.compute_bitmask(), np.uint8)
    return not all(_has(mask, token_id) for token_id in table.free_ids)


def _meets(mask: Bits, others: Bits) -> bool:
    size = min(mask.size, others.size)
    return bool((mask[:size] & others[:size]).any())


def _has(mask: Bits, token_id: int) -> bool:
    place = token_id >> 3
    return 0 <= place < mask.size and bool(mask[place] >> (token_id & 7) & 1)


class Landing:
    """When one answer must begin to end. Used by one thread at a time, beside its matcher."""

    def __init__(self, table: LandingTable, closings: Sequence[Sequence[int]] = ()) -> None:
        self._table = table
        self._closings = closings
        self._left = 0
        self._margin = _LEAST_MARGIN
        self._look_at: int | None = None  # ids left; None: no more
        self._path: list[int] | None = None
        self.forced = 0

    @property
    def has_begun(self) -> bool:
        return self._path is not None

    def limit(self, tokens: int, matcher: LLMatcher) -> None:
        """At most `tokens` ids will come, the end id included."""
        self._left = tokens
        path = shortest_end(matcher, self._table, self._closings)
        if path is None:
            self._look_at = tokens // 2
        elif len(path) < tokens:  # else it cannot end in time
            self._plan(path)

    def accepted(self, token_id: int, matcher: LLMatcher) -> None:
        """One id has come, and `matcher` knows of it."""
        self._left -= 1
        if self._path is not None:
            self._follow(token_id)
        elif self._look_at is not None and self._left <= self._look_at:
            self._look(matcher)

    def _look(self, matcher: LLMatcher) -> None:
        path = shortest_end(matcher, self._table, self._closings)
        if path is None:
            self._look_at = self._left - max(1, self._left // 16)
        elif self._plan(path) <= 0:
            self._path = path

    def _plan(self, path: list[int]) -> int:
        """How many ids may still come before `path` must be taken; decides when to look again.

        Halfway there at first, as a document that grows takes longer to end; near it each time.
        """
        self._margin = max(self._margin, len(path) // 4)
        slack = self._left - 1 - len(path) - self._margin
        self._look_at = self._left - max(1, (slack - _LOOK_AHEAD) // 2)
        return slack

    def _follow(self, token_id: int) -> None:
        assert self._path is not None
        self.forced += 1
        if self._path and self._path.pop(0) != token_id:
            self._path = None  # whoever samples is free to do as it likes; then it is on its own
            self._look_at = None

    def narrowed(self, mask: bytes) -> bytes:
        """Of what the grammar allows now, what the landing allows."""
        if self._path is None:
            return mask
        wanted = self._path[:1] or self._table.end_ids
        bits = np.zeros(len(mask), np.uint8)
        for token_id in wanted:
            bits[token_id >> 3] |= 1 << (token_id & 7)
        both = bits & np.frombuffer(mask, np.uint8)
        return both.tobytes() if both.any() else mask
