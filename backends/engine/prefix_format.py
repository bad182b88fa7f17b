"""One file of the prefix cache on disk: its blocks, what it says of itself, and how it comes to be.

A file is blocks of `BLOCK_POSITIONS` positions each, then pieces of what cannot be cut by position,
then a description with a checksum of each of those, then the description's own. It appears by a rename
after a sync, so a pulled plug leaves it whole or not at all. Files are for their owner only.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import struct
import zlib
from typing import BinaryIO

import msgspec

BLOCK_POSITIONS = 64
# Below that, prefilling is over before a file is open.
LEAST_IDS = 64
# What cannot be cut is written in pieces, so that nobody waits for all of it.
PIECE_BYTES = 4 << 20
SUFFIX = ".kv"
TEMPORARY = ".writing-"
_MAGIC = b"HEARTHKV"
_TAIL = struct.Struct("<II8s")  # checksum and length of the description, magic
_VERSION = 2
_MOST_DESCRIPTION_BYTES = 32 << 20


class PrefixForm(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine lays out what it computed: so many bytes a position, and what cannot be cut.

    With `whole_bytes` (states, windows that have turned) a prefix serves whole or not at all.
    `detail` is the engine's own.
    """

    position_bytes: int
    whole_bytes: int = 0
    detail: bytes = b""


class SavedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says of itself. `scope` is a hash; `seconds` is what computing it took.

    `exact_length` leading positions have numbers that do not depend on how they came about.
    """

    version: int = _VERSION
    ids: tuple[int, ...]
    scope: str
    system_length: int
    exact_length: int
    form: PrefixForm
    seconds: float
    checksums: tuple[int, ...] = ()

    @property
    def held_bytes(self) -> int:
        """Of all blocks and pieces."""
        return len(self.ids) * self.form.position_bytes + self.form.whole_bytes

    @property
    def blocks(self) -> int:
        return -(-len(self.ids) // BLOCK_POSITIONS)

    @property
    def pieces(self) -> int:
        return -(-self.form.whole_bytes // PIECE_BYTES)

    def usable(self, shared: int) -> int:
        """Positions that can be gone on from, where only the first `shared` are wanted."""
        return shared if shared == len(self.ids) or not self.form.whole_bytes else 0

    def blocks_of(self, positions: int) -> int:
        """Blocks that hold so many positions, and all pieces: those follow the last block only."""
        return -(-positions // BLOCK_POSITIONS) + self.pieces

    def reading_bytes(self, positions: int) -> int:
        return positions * self.form.position_bytes + self.form.whole_bytes

    def block_bytes(self, place: int) -> int:
        """Of the block `place`, or of the piece that comes so many behind the last block."""
        if place >= self.blocks:
            left = self.form.whole_bytes - (place - self.blocks) * PIECE_BYTES
            return min(left, PIECE_BYTES)
        left = len(self.ids) - place * BLOCK_POSITIONS
        return min(left, BLOCK_POSITIONS) * self.form.position_bytes


class PrefixWriter:
    """One file in the making; blocks in order, then pieces, then `finish`, or `abandon` at any time."""

    def __init__(self, folder: pathlib.Path, saved: SavedPrefix) -> None:
        token = secrets.token_hex(8)
        self.name = f"{token}{SUFFIX}"
        self.saved = saved
        self._final = folder / self.name
        self._path = folder / f"{TEMPORARY}{token}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file: BinaryIO = os.fdopen(os.open(self._path, flags, 0o600), "wb", buffering=0)
        self._checksums: list[int] = []

    @property
    def written(self) -> int:
        """Positions so far."""
        return min(len(self._checksums) * BLOCK_POSITIONS, len(self.saved.ids))

    @property
    def written_whole(self) -> int:
        """Bytes so far of what cannot be cut."""
        pieces = max(len(self._checksums) - self.saved.blocks, 0)
        return min(pieces * PIECE_BYTES, self.saved.form.whole_bytes)

    @property
    def is_complete(self) -> bool:
        return len(self._checksums) == self.saved.blocks + self.saved.pieces

    def add(self, block: bytes) -> None:
        """The next block or piece. Raises OSError, ValueError for one of another size."""
        if len(block) != self.saved.block_bytes(len(self._checksums)):
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
        with contextlib.suppress(OSError):
            self._path.unlink()


def _write_all(file: BinaryIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def read_description(path: pathlib.Path) -> SavedPrefix | None:
    """None unless the file is whole, by its sizes."""
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
    return saved if _is_sound(saved, size - _TAIL.size - length) else None


def _is_sound(saved: SavedPrefix, held_bytes: int) -> bool:
    count = len(saved.ids)
    return (
        saved.version == _VERSION
        and count >= LEAST_IDS
        and min(saved.form.position_bytes, saved.form.whole_bytes) >= 0
        and held_bytes == saved.held_bytes
        and len(saved.checksums) == saved.blocks + saved.pieces
        and 0 <= saved.exact_length <= count
        and 0 <= saved.system_length <= count
        and 0.0 <= saved.seconds < float("inf")
    )
