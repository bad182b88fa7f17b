"""Prefixes on disk: what was computed for a sequence of ids, in files that outlive the process.

Runtime-neutral: an engine gives and takes blocks of bytes whose inside is its own business. What is
torn, foreign or too large is ignored and removed. The quota holds for all models together; the longest
unused goes first.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from backends.engine.prefix_format import (
    LEAST_IDS,
    SUFFIX,
    TEMPORARY,
    PrefixForm,
    PrefixWriter,
    SavedPrefix,
    read_description,
)
from backends.engine.prefix_index import Prefix, PrefixIndex

# Reading back must be so many times faster than computing anew.
LEAST_GAIN = 4.0
_ASSUMED_BYTES_PER_SECOND = 200e6
_STALE_SECONDS = 3600.0


class Found(NamedTuple):
    """The file `name` holds the first `shared` ids that were asked for, `exact` of them exactly."""

    name: str
    shared: int
    exact: int
    form: PrefixForm


class DamagedPrefix(Exception):
    """The file is not what it says; it is gone now."""


class PrefixFiles:
    """The files of one model and runtime in `folder`; `root` is where the quota is counted.

    `knows` says whether the engine can read a form; files of others are removed. Numbers that do not
    depend on how they came about are used in whole steps of `exact_step` positions. Used by one thread
    at a time.
    """

    def __init__(
        self,
        root: pathlib.Path,
        folder: pathlib.Path,
        *,
        quota_bytes: int,
        knows: Callable[[PrefixForm], bool],
        exact_step: int = 1,
    ) -> None:
        self._root = root
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._knows = knows
        self._exact_step = exact_step
        self._bytes_per_second = _ASSUMED_BYTES_PER_SECOND
        self._index: PrefixIndex[str] = PrefixIndex()
        self._known: dict[str, SavedPrefix] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(folder.iterdir()):
            self._take_up(path)

    def __len__(self) -> int:
        return len(self._known)

    def _take_up(self, path: pathlib.Path) -> None:
        if path.name.startswith(TEMPORARY):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            return
        if path.suffix != SUFFIX:
            return
        saved = read_description(path)
        if saved is None or not self._knows(saved.form):
            _remove(path)
        else:
            self._know(path.name, saved)

    def _know(self, name: str, saved: SavedPrefix) -> None:
        self._known[name] = saved
        self._index.put(name, Prefix(saved.ids, saved.scope, saved.system_length))

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._index.remove(name)

    # ---- reading ----

    def best(
        self,
        wanted: Prefix,
        *,
        most: int,
        held: int,
        exact: bool,
        most_seconds: float = math.inf,
    ) -> Found | None:
        """The file that saves most beyond the `held` ids that are in memory; None: none is worth it.

        At most `most` ids are of use; with `exact` only those with numbers of a cold run. Reading
        must not take longer than `most_seconds`.
        """
        best: Found | None = None
        for name, shared in self._index.matches(_hidden(wanted)):
            saved = self._known[name]
            usable = self._usable(saved, min(shared, most), exact=exact)
            if best is not None and usable <= best.shared:
                continue
            reading = saved.reading_bytes(usable) / self._bytes_per_second
            if reading <= most_seconds and _is_worth(saved, usable, held, reading):
                best = Found(name, usable, min(saved.exact_length, usable), saved.form)
        return best

    def _usable(self, saved: SavedPrefix, shared: int, *, exact: bool) -> int:
        if exact:
            shared = min(shared, saved.exact_length) // self._exact_step * self._exact_step
        return saved.usable(shared)

    def read(self, found: Found) -> Iterator[bytes]:
        """The blocks that hold the first `found.shared` ids, then the pieces. Raises DamagedPrefix."""
        saved, path = self._known[found.name], self._folder / found.name
        begin, count = time.perf_counter(), 0
        try:
            with path.open("rb") as file:
                os.utime(path)
                for place in range(saved.blocks_of(found.shared)):
                    size = saved.block_bytes(place)
                    data = file.read(size)
                    if len(data) != size or zlib.crc32(data) != saved.checksums[place]:
                        raise DamagedPrefix(f"block {place} of {found.name} is damaged")
                    count += size
                    yield data
        except (OSError, DamagedPrefix) as error:
            self._forget(found.name)
            _remove(path)
            raise DamagedPrefix(str(error)) from error
        self._saw(count, time.perf_counter() - begin)

    def _saw(self, count: int, seconds: float) -> None:
        """A slower disk counts at once, a faster one by and by."""
        rate = count / max(seconds, 1e-6)
        known = self._bytes_per_second
        self._bytes_per_second = (known + rate) / 2 if rate > known else rate

    # ---- writing ----

    def has(self, prefix: Prefix) -> bool:
        """Whether all of it is in a file already."""
        hidden, length = _hidden(prefix), len(prefix.ids)
        for match in self._index.matches(hidden):
            saved = self._known[match.key]
            if saved.scope == hidden.scope and saved.usable(match.shared) >= length:
                return True
        return False

    def begin(
        self, prefix: Prefix, exact_length: int, seconds: float, form: PrefixForm
    ) -> PrefixWriter | None:
        """None for what the quota would not hold."""
        hidden = _hidden(prefix)
        saved = SavedPrefix(
            ids=tuple(prefix.ids),
            scope=hidden.scope,
            system_length=prefix.system_length,
            exact_length=exact_length,
            form=form,
            seconds=seconds,
        )
        if len(prefix.ids) < LEAST_IDS or saved.held_bytes > self._quota_bytes:
            return None
        self._make_room(saved.held_bytes)
        return PrefixWriter(self._folder, saved)

    def add(self, written: PrefixWriter) -> None:
        """Takes up a finished file, in the place of those that it says everything of."""
        saved = written.saved
        for match in self._index.matches(Prefix(saved.ids, saved.scope)):
            known = self._known[match.key]
            says_all = match.shared == len(known.ids) == saved.usable(match.shared)
            if known.scope == saved.scope and says_all:
                self._forget(match.key)
                _remove(self._folder / match.key)
        self._know(written.name, saved)

    def _make_room(self, size: int) -> None:
        """Removes the longest unused of all models until `size` more fits the quota."""
        files: list[tuple[float, int, pathlib.Path]] = []
        for path in self._root.glob(f"*/*/*/*{SUFFIX}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        held = sum(size for _, size, _ in files)
        for _, freed, path in sorted(files):
            if held + size <= self._quota_bytes:
                return
            if path.parent == self._folder:
                self._forget(path.name)
            _remove(path)
            held -= freed


def _is_worth(saved: SavedPrefix, usable: int, held: int, reading_seconds: float) -> bool:
    if usable - held < LEAST_IDS:
        return False
    computing_seconds = saved.seconds / len(saved.ids) * (usable - held)
    return reading_seconds * LEAST_GAIN <= computing_seconds


def _hidden(prefix: Prefix) -> Prefix:
    """What names a client must not lie on a disk for others to read."""
    return prefix._replace(scope=hashlib.sha256(prefix.scope.encode()).hexdigest())


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
