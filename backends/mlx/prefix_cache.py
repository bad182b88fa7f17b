"""Caches of finished requests and snapshots on the way, kept for requests that begin alike.

Everything kept is evaluated when it comes in, so that its bytes are what it holds. Where positions
cannot be taken back (states, full windows) a kept prefix serves whole or not at all; requests leave
snapshots at places where others may go on. The longest unused goes first. With `SavedCaches` what is
kept is also on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from backends.engine.borders import border_before, last_grid_border
from backends.engine.pace import EXACT_CHUNK
from backends.engine.prefix_index import Prefix, PrefixIndex
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.mlx_lm_internals import Caches
from backends.mlx.saved_caches import SavedCaches
from backends.mlx.seat import Seat
from backends.types import GenerateRequest

# Fewer ids are prefilled again sooner than found.
MIN_SHARED = 16
# A kept row is taken over if no more than this is lost with it; else its prefix is copied.
MAX_LOST = 64
MAX_IDLE_SECONDS = 1800.0
# Looking through more costs more than it finds.
MAX_ENTRIES = 256


class Entry:
    """Caches of `length` positions, or those of a `seat` that is still at work."""

    def __init__(self, caches: Caches, length: int, exact: int, seat: Seat | None = None) -> None:
        self.caches = caches
        self._length = length
        self._exact_length = exact
        self.seat = seat
        self.nbytes = internals.nbytes(caches)
        self.used_at = 0.0

    @property
    def length(self) -> int:
        return self.seat.length if self.seat else self._length

    @property
    def exact_length(self) -> int:
        return self.seat.exact_length if self.seat else self._exact_length

    @property
    def can_trim(self) -> bool:
        group = self.seat.group if self.seat else None
        return internals.can_trim(group.caches if group else self.caches)

    def prefix(self, length: int) -> Caches:
        if self.seat:
            return self.seat.prefix(length)
        return internals.prefix_of(self.caches, self._length, length)


class Hit(NamedTuple):
    """Caches whose first `length` positions are those of the request; they are the request's own."""

    caches: Caches
    length: int
    exact_length: int


class PrefixCache:
    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, saved: SavedCaches | None = None
    ) -> None:
        self._clock = clock
        self._saved = saved
        self._index: PrefixIndex[Entry] = PrefixIndex()
        self._kept: dict[Entry, None] = {}  # the longest unused first
        self._working: dict[Seat, Entry] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    # ---- what comes in ----

    def publish(self, seat: Seat) -> None:
        """The seat has fed its prompt: from now on others may copy it."""
        self.withdraw(seat)
        entry = Entry([], 0, 0, seat)
        self._working[seat] = entry
        self._index.put(entry, _prefix(seat.generation.request, seat.generation.ids[: seat.length]))

    def withdraw(self, seat: Seat) -> None:
        entry = self._working.pop(seat, None)
        if entry:
            self._index.remove(entry)

    def keep(self, seat: Seat, caches: Caches, budget_bytes: int) -> None:
        """`caches`, with the seat's first `length` positions, are this cache's own from now on."""
        length = seat.length
        if length < MIN_SHARED:
            return
        internals.evaluate(caches)
        entry = Entry(caches, length, seat.exact_length)
        prefix = _prefix(seat.generation.request, seat.generation.ids[:length])
        if self._is_known(prefix) or not self.make_room(entry.nbytes, budget_bytes):
            return
        if entry.can_trim:
            self._drop_prefixes_of(prefix)
        self._index.put(entry, prefix)
        entry.used_at = self._clock()
        self._kept[entry] = None
        self.nbytes += entry.nbytes
        if self._saved is not None:
            self._saved.note(entry, prefix, entry.exact_length)
        if len(self._kept) > MAX_ENTRIES:
            self.drop(next(iter(self._kept)))

    def _is_known(self, prefix: Prefix) -> bool:
        """Whether a kept entry says all that a new one would."""
        for match in self._of_scope(prefix):
            is_whole = match.can_trim or match.length == len(prefix.ids)
            if self._shared(match, prefix) == len(prefix.ids) and is_whole:
                self._touch(match)
                return True
        return False

    def _drop_prefixes_of(self, prefix: Prefix) -> None:
        for entry in self._of_scope(prefix):
            if self._shared(entry, prefix) == entry.length:
                self.drop(entry)

    def _of_scope(self, prefix: Prefix) -> list[Entry]:
        found = [match.key for match in self._index.matches(prefix)]
        return [
            entry
            for entry in found
            if entry in self._kept and self._index.prefix_of(entry).scope == prefix.scope
        ]

    def _shared(self, entry: Entry, prefix: Prefix) -> int:
        ids = self._index.prefix_of(entry).ids
        shared = min(len(ids), len(prefix.ids))
        return shared if tuple(ids[:shared]) == tuple(prefix.ids[:shared]) else 0

    def _touch(self, entry: Entry) -> None:
        del self._kept[entry]
        self._kept[entry] = None
        entry.used_at = self._clock()

    # ---- what goes out ----

    def make_room(self, wanted_bytes: int, budget_bytes: int) -> bool:
        """Drops what was unused longest until `wanted_bytes` fit beside the rest."""
        oldest = self._clock() - MAX_IDLE_SECONDS
        for entry in [entry for entry in self._kept if entry.used_at < oldest]:
            self.drop(entry)
        if wanted_bytes > budget_bytes:
            return False
        while self.nbytes + wanted_bytes > budget_bytes and self._kept:
            self.drop(next(iter(self._kept)))
        return True

    def drop(self, entry: Entry) -> None:
        if self._saved is not None:
            self._saved.forget(entry)
        self._index.remove(entry)
        if entry in self._kept:
            del self._kept[entry]
            self.nbytes -= entry.nbytes

    def clear(self) -> None:
        for entry in list(self._kept):
            self.drop(entry)

    def close(self) -> None:
        """Nothing is kept, read or written any more."""
        self.clear()
        if self._saved is not None:
            self._saved.close()
        self._saved = None

    def rest(self) -> bool:
        """A little work in a pause. False: there is none."""
        return self._saved is not None and self._saved.rest()

    # ---- for a request ----

    def take(self, request: GenerateRequest, *, exact: bool, is_quiet: bool) -> Hit | None:
        """The most that is kept of the beginning of its prompt; two ids at least are left to run.

        `is_quiet`: nobody else is at work, so a long read from disk keeps nobody waiting.
        """
        best: tuple[Entry, int] | None = None
        for entry, shared in self._index.matches(_prefix(request, request.prompt_ids)):
            usable = _usable(entry, request, min(shared, _most(request)), exact=exact)
            if usable >= MIN_SHARED and (best is None or usable > best[1]):
                best = entry, usable
        held = best[1] if best else 0
        if not request.reproducible:
            hit = self._read_back(request, held, exact=exact, is_quiet=is_quiet)
            if hit is not None:
                return hit
        return self._taken(request, *best) if best else None

    def _read_back(
        self, request: GenerateRequest, held: int, *, exact: bool, is_quiet: bool
    ) -> Hit | None:
        """What the disk has beyond the `held` ids in memory; None: nothing that is worth it."""
        if self._saved is None:
            return None
        prefix, most = _prefix(request, request.prompt_ids), _most(request)
        found = self._saved.find(prefix, most=most, held=held, exact=exact, is_quiet=is_quiet)
        caches = self._saved.restored(found) if found else None
        return Hit(caches, found.shared, found.exact) if found and caches else None

    def _taken(self, request: GenerateRequest, entry: Entry, length: int) -> Hit:
        exact_length = min(entry.exact_length, length)
        if entry in self._kept:
            self._touch(entry)
            is_own = self._index.prefix_of(entry).scope == request.cache_scope
            if is_own and entry.can_trim and entry.length - length <= MAX_LOST:
                internals.trim(entry.caches, entry.length - length)
                self.drop(entry)
                return Hit(entry.caches, length, exact_length)
        return Hit(entry.prefix(length), length, exact_length)


def _most(request: GenerateRequest) -> int:
    """Ids that may be left out of the runs."""
    return max(len(request.prompt_ids) - 2, 0)


def _border(request: GenerateRequest, length: int, *, exact: bool) -> int:
    """The last one of `length` ids; with `exact` of the fixed grid."""
    if exact:
        return last_grid_border(request.images, length, EXACT_CHUNK)
    return border_before(request.images, length)


def _usable(entry: Entry, request: GenerateRequest, shared: int, *, exact: bool) -> int:
    """Positions of `shared` that can be gone on from; with `exact` only those of the fixed grid."""
    usable = min(shared, entry.exact_length if exact else entry.length)
    usable = _border(request, usable, exact=exact)
    return usable if usable == entry.length or entry.can_trim else 0


def _prefix(request: GenerateRequest, ids: Sequence[int]) -> Prefix:
    length = min(request.system_length, len(ids))
    return Prefix(ids, request.cache_scope, length if length == request.system_length else 0)
