"""Rows of finished requests, kept for those that begin alike; which row a new request gets.

An idle row is taken over by a request that goes on where it ends; else what both share is copied
into a fresh row. What is kept never stands in the way of work: the longest unused goes first, when
its bytes, its row or its age say so. With `SavedRows` what is kept is also on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from backends.engine.borders import border_before
from backends.engine.prefix_index import Match, Prefix, PrefixIndex
from backends.onnx.rows import KeyValueRows, Row
from backends.onnx.saved_rows import SavedRows
from backends.types import GenerateRequest

# Fewer ids are prefilled again sooner than found.
MIN_SHARED = 16
# An idle row is rolled back only if no more than this is lost with it; else its prefix is copied.
MAX_LOST = 64
MAX_IDLE_SECONDS = 1800.0


class Seating(NamedTuple):
    """A row for a request: it holds `row.length` of the `shared` ids, `source` has all of them."""

    row: Row
    shared: int
    source: Row | None


class PrefixCache:
    """Owns the idle rows. `max_idle` bounds their number, the budget of `rows` their bytes."""

    def __init__(
        self,
        rows: KeyValueRows,
        *,
        max_idle: int,
        clock: Callable[[], float] = time.monotonic,
        saved: SavedRows | None = None,
    ) -> None:
        self._rows = rows
        self._max_idle = max_idle
        self._clock = clock
        self._saved = saved
        self._index: PrefixIndex[Row] = PrefixIndex()
        self._idle: dict[Row, float] = {}  # used last at; the longest unused first

    def __len__(self) -> int:
        return len(self._idle)

    # ---- what can be shared ----

    def publish(self, row: Row, request: GenerateRequest, ids: Sequence[int]) -> None:
        """The active `row` begins with `ids`: from now on others may copy them."""
        self._index.put(row, _prefix(request, ids))

    def keep(self, row: Row, request: GenerateRequest, ids: Sequence[int]) -> None:
        """The request has left `row`, whose positions hold the first of `ids`."""
        self._index.remove(row)
        if row.length < MIN_SHARED or self._max_idle < 1:
            self._rows.release(row)
            return
        self._rows.park(row)
        prefix = _prefix(request, ids[: row.length])
        if not self._rows.states:  # those can be gone on from at their end only
            self._drop_prefixes_of(prefix)
        self._index.put(row, prefix)
        self._idle[row] = self._clock()
        if self._saved is not None:
            self._saved.note(row, prefix, row.exact_length)
        if len(self._idle) > self._max_idle:
            self.drop(next(iter(self._idle)))

    def _drop_prefixes_of(self, prefix: Prefix) -> None:
        """Idle rows that say nothing that a new one does not."""
        for match in self._index.matches(prefix):
            is_whole = match.shared == len(self._index.prefix_of(match.key).ids)
            if match.key in self._idle and is_whole:
                self.drop(match.key)

    def drop(self, row: Row) -> None:
        """Gives the row back, whatever it was."""
        self._leave_alone(row)
        self._index.remove(row)
        self._idle.pop(row, None)
        self._rows.release(row)

    def _leave_alone(self, row: Row) -> None:
        """Nobody writes it to disk any more."""
        if self._saved is not None:
            self._saved.forget(row)

    def rest(self) -> bool:
        """A little work in a pause. False: there is none."""
        return self._saved is not None and self._saved.rest()

    def holds(self, row: Row, ids: Sequence[int]) -> bool:
        """Whether `row` still begins with `ids`."""
        return row in self._index and self._index.prefix_of(row).ids[: len(ids)] == tuple(ids)

    def withdraw(self, row: Row) -> None:
        """Its content is about to change: nobody finds it any more."""
        self._index.remove(row)

    def drop_old(self) -> None:
        oldest = self._clock() - MAX_IDLE_SECONDS
        for row in [row for row, used_at in self._idle.items() if used_at < oldest]:
            self.drop(row)

    def clear(self) -> None:
        for row in list(self._idle):
            self.drop(row)

    # ---- a row for a request ----

    def seat(self, request: GenerateRequest, positions: int, *, exact: bool) -> Seating | None:
        """A row with `positions` promised; None when that must wait for active rows.

        With `exact` only positions are shared whose numbers are those that a cold run gives.
        """
        if not self._rows.has_room(positions, beside_idle=False):
            return None
        self.drop_old()
        match = self._best(request, exact=exact)
        held = match.shared if match else 0
        if not request.reproducible and (row := self._read_back(request, positions, held, exact)):
            return Seating(row, row.length, None)
        if match is None:
            row = self._take(positions, None)
            return Seating(row, 0, None) if row else None
        source = match.key
        if source in self._idle:
            self._idle[source] = self._idle.pop(source)  # it must be the last to go
            is_own = self._index.prefix_of(source).scope == request.cache_scope
            if is_own and source.length - match.shared <= MAX_LOST:
                return self._take_over(match, positions)
        row = self._take(positions, source)
        if row is not None:
            return Seating(row, match.shared, source)
        return self._take_over(match, positions) if source in self._idle else None

    def _read_back(
        self, request: GenerateRequest, positions: int, held: int, exact: bool
    ) -> Row | None:
        """A fresh row with more of the prompt than memory holds; None where the disk has no such."""
        if self._saved is None:
            return None
        prefix, most = _prefix(request, request.prompt_ids), len(request.prompt_ids) - 2
        is_quiet = self._rows.is_quiet
        found = self._saved.find(prefix, most=most, held=held, exact=exact, is_quiet=is_quiet)
        row = self._take(positions, None) if found else None
        if found is None or row is None:
            return None
        if self._saved.fill(row, found):
            return row
        self._rows.release(row)
        return None

    def fresh_row(self, positions: int) -> Row | None:
        """A row that has nothing to do with what is kept."""
        return self._take(positions, None)

    def _best(self, request: GenerateRequest, *, exact: bool) -> Match[Row] | None:
        """At least two ids are left to run: a run of one would round differently.

        Nor is an image cut whose positions see each other.
        """
        most = len(request.prompt_ids) - 2
        best: Match[Row] | None = None
        for row, shared in self._index.matches(_prefix(request, request.prompt_ids)):
            usable = min(shared, most, row.exact_length if exact else row.length)
            usable = border_before(request.images, usable)
            if self._rows.states and not (row in self._idle and usable == row.length):
                continue  # what a state has read cannot be taken back
            if usable >= MIN_SHARED and (best is None or usable > best.shared):
                best = Match(row, usable)
        return best

    def _take(self, positions: int, spared: Row | None) -> Row | None:
        """A fresh row; idle ones but `spared` make room for it."""
        while (row := self._rows.take(positions)) is None:
            victim = next((row for row in self._idle if row is not spared), None)
            if victim is None:
                return None
            self.drop(victim)
        return row

    def _take_over(self, match: Match[Row], positions: int) -> Seating | None:
        row = match.key
        while not self._rows.claim(row, match.shared, positions):
            victim = next((other for other in self._idle if other is not row), None)
            if victim is None:
                return None
            self.drop(victim)
        self._index.remove(row)
        self._leave_alone(row)
        del self._idle[row]
        return Seating(row, match.shared, None)


def _prefix(request: GenerateRequest, ids: Sequence[int]) -> Prefix:
    length = min(request.system_length, len(ids))
    return Prefix(ids, request.cache_scope, length if length == request.system_length else 0)
