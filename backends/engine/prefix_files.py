"""Prefixes on disk: what was computed for a sequence of ids, in files that outlive the process.

Runtime-neutral: an engine gives and takes blocks of bytes, `BLOCK_POSITIONS` positions each, whose
inside is its own business. A file is blocks, then a description with a checksum of each block, then
the description's own; it appears by a rename after a sync, so a pulled plug leaves it whole or not at
all, and what is torn, foreign or too large is ignored and removed. Files are for their owner only.
The quota holds for all models together; the longest unused goes first.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pathlib
import secrets
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from backends.engine.prefix_index import Prefix, PrefixIndex

BLOCK_POSITIONS = 64
# Reading back must be so many times faster than computing anew.
LEAST_GAIN = 4.0
# Below that, prefilling is over before a file is open.
LEAST_IDS = 64
_MAGIC = b"HEARTHKV"
_TAIL = struct.Struct("<II8s")  # checksum and length of the description, magic
_VERSION = 1
_MOST_DESCRIPTION_BYTES = 32 << 20
_ASSUMED_BYTES_PER_SECOND = 200e6
_STALE_SECONDS = 3600.0
_SUFFIX = ".kv"
_TEMPORARY = ".writing-"


class SavedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself. `scope` is a hash; `seconds` is what computing it took.

    `exact_length` leading positions have numbers that do not depend on how they came about.
    """

    version: int
    ids: tuple[int, ...]
    scope: str
    system_length: int
    exact_length: int
    position_bytes: int
    seconds: float
    checksums: tuple[int, ...]


class Found(NamedTuple):
    """The file `name` holds the first `shared` ids that were asked for, `exact` of them exactly."""

    name: str
    shared: int
    exact: int


class DamagedPrefix(Exception):
    """The file is not what it says; it is gone now."""


class PrefixFiles:
    """The files of one model and runtime in `folder`; `root` is where the quota is counted.

    Used by one thread at a time.
    """

    def __init__(
        self, root: pathlib.Path, folder: pathlib.Path, *, quota_bytes: int, position_bytes: int
    ) -> None:
        self._root = root
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._position_bytes = position_bytes
        self._bytes_per_second = _ASSUMED_BYTES_PER_SECOND
        self._index: PrefixIndex[str] = PrefixIndex()
        self._known: dict[str, SavedPrefix] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(folder.iterdir()):
            self._take_up(path)

    def __len__(self) -> int:
        return len(self._known)

    def _take_up(self, path: pathlib.Path) -> None:
        if path.name.startswith(_TEMPORARY):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            return
        if path.suffix != _SUFFIX:
            return
        saved = _description(path, self._position_bytes)
        if saved is None:
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
            usable = min(shared, most, saved.exact_length if exact else len(saved.ids))
            if best is not None and usable <= best.shared:
                continue
            reading = usable * self._position_bytes / self._bytes_per_second
            if reading <= most_seconds and _is_worth(saved, usable, held, reading):
                best = Found(name, usable, min(saved.exact_length, usable))
        return best

    def read(self, found: Found) -> Iterator[bytes]:
        """The blocks that hold the first `found.shared` ids. Raises DamagedPrefix."""
        saved, path = self._known[found.name], self._folder / found.name
        begin, count = time.perf_counter(), 0
        try:
            with path.open("rb") as file:
                os.utime(path)
                for place in range(-(-found.shared // BLOCK_POSITIONS)):
                    size = _block_bytes(saved, place)
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
        hidden = _hidden(prefix)
        return any(
            match.shared >= len(prefix.ids) and self._known[match.key].scope == hidden.scope
            for match in self._index.matches(hidden)
        )

    def begin(self, prefix: Prefix, exact_length: int, seconds: float) -> PrefixWriter | None:
        """None for what the quota would not hold."""
        size = len(prefix.ids) * self._position_bytes
        if len(prefix.ids) < LEAST_IDS or size > self._quota_bytes:
            return None
        hidden = _hidden(prefix)
        saved = SavedPrefix(
            version=_VERSION,
            ids=tuple(prefix.ids),
            scope=hidden.scope,
            system_length=prefix.system_length,
            exact_length=exact_length,
            position_bytes=self._position_bytes,
            seconds=seconds,
            checksums=(),
        )
        self._make_room(size)
        return PrefixWriter(self._folder, saved)

    def add(self, written: PrefixWriter) -> None:
        """Takes up a finished file, in the place of those that it says everything of."""
        saved = written.saved
        for match in self._index.matches(Prefix(saved.ids, saved.scope)):
            known = self._known[match.key]
            if known.scope == saved.scope and match.shared == len(known.ids):
                self._forget(match.key)
                _remove(self._folder / match.key)
        self._know(written.name, saved)

    def _make_room(self, size: int) -> None:
        """Removes the longest unused of all models until `size` more fits the quota."""
        files: list[tuple[float, int, pathlib.Path]] = []
        for path in self._root.glob(f"*/*/*/*{_SUFFIX}"):
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


class PrefixWriter:
    """One file in the making; blocks in order, then `finish`, or `abandon` at any time."""

    def __init__(self, folder: pathlib.Path, saved: SavedPrefix) -> None:
        token = secrets.token_hex(8)
        self.name = f"{token}{_SUFFIX}"
        self.saved = saved
        self._final = folder / self.name
        self._path = folder / f"{_TEMPORARY}{token}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file: BinaryIO = os.fdopen(os.open(self._path, flags, 0o600), "wb", buffering=0)
        self._checksums: list[int] = []

    @property
    def written(self) -> int:
        """Positions so far."""
        return min(len(self._checksums) * BLOCK_POSITIONS, len(self.saved.ids))

    def add(self, block: bytes) -> None:
        """Raises OSError, ValueError for a block of another size."""
        if len(block) != _block_bytes(self.saved, len(self._checksums)):
            raise ValueError("a block of another size")
        _write_all(self._file, block)
        self._checksums.append(zlib.crc32(block))

    def finish(self) -> None:
        """The file is there when this returns. Raises OSError."""
        self.saved = msgspec.structs.replace(self.saved, checksums=tuple(self._checksums))
        data = msgspec.msgpack.encode(self.saved)
        tail = _TAIL.pack(zlib.crc32(data), len(data), _MAGIC)
        _write_all(self._file, data + tail)
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.rename(self._final)

    def abandon(self) -> None:
        self._file.close()
        _remove(self._path)


def _is_worth(saved: SavedPrefix, usable: int, held: int, reading_seconds: float) -> bool:
    if usable - held < LEAST_IDS:
        return False
    computing_seconds = saved.seconds / len(saved.ids) * (usable - held)
    return reading_seconds * LEAST_GAIN <= computing_seconds


def _write_all(file: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _block_bytes(saved: SavedPrefix, place: int) -> int:
    left = len(saved.ids) - place * BLOCK_POSITIONS
    return min(left, BLOCK_POSITIONS) * saved.position_bytes


def _hidden(prefix: Prefix) -> Prefix:
    """What names a client must not lie on a disk for others to read."""
    return prefix._replace(scope=hashlib.sha256(prefix.scope.encode()).hexdigest())


def _description(path: pathlib.Path, position_bytes: int) -> SavedPrefix | None:
    """None unless the file is whole, by its sizes, and made for rows like these."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(-_TAIL.size, os.SEEK_END)
            checksum, length, magic = _TAIL.unpack(file.read(_TAIL.size))
            if magic != _MAGIC or length > min(_MOST_DESCRIPTION_BYTES, size - _TAIL.size):
                return None
            file.seek(-_TAIL.size - length, os.SEEK_END)
            data = file.read(length)
        if zlib.crc32(data) != checksum:
            return None
        saved = msgspec.msgpack.decode(data, type=SavedPrefix)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    held = size - _TAIL.size - length
    return saved if _is_sound(saved, held, position_bytes) else None


def _is_sound(saved: SavedPrefix, held_bytes: int, position_bytes: int) -> bool:
    count: Sequence[int] = saved.ids
    blocks = -(-len(count) // BLOCK_POSITIONS)
    return (
        saved.version == _VERSION
        and saved.position_bytes == position_bytes
        and len(count) >= LEAST_IDS
        and held_bytes == len(count) * position_bytes
        and len(saved.checksums) == blocks
        and 0 <= saved.exact_length <= len(count)
        and 0 <= saved.system_length <= len(count)
        and 0.0 <= saved.seconds < float("inf")
    )


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
