"""A blob on its way: one sparse file and a small state file per part, so that nothing is fetched twice.

`<blob>-partial` holds the bytes, `<blob>-partial-<N>` says of part N where it lies and how much of it
is on disk *and synced*. The names and the JSON are the field's, so a download that another server of
this format began is finished here, and the other way round. Blocking: called from threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import threading
from collections.abc import Sequence

import msgspec

from daemon.models.durable import fsync_folder, full_disk_named

PART_COUNT = 16
MIN_PART_BYTES = 100_000_000
MAX_PART_BYTES = 1_000_000_000
MAX_PARTS = 65_536


class SavedPart(msgspec.Struct, rename="pascal"):
    """One state file. `completed` counts bytes that survived an fsync."""

    n: int
    offset: int
    size: int
    completed: int = 0


class Part:
    """Part `n`: `written` bytes of it are in the file, `completed` of them are synced and on record.

    One task fetches it; `written` grows in the thread that writes, `completed` in the one that saves.
    """

    def __init__(self, n: int, offset: int, size: int, completed: int = 0) -> None:
        self.n = n
        self.offset = offset
        self.size = size
        self.completed = completed
        self.written = completed

    @property
    def is_done(self) -> bool:
        return self.written >= self.size


def plan_parts(total_bytes: int) -> list[Part]:
    """Sixteenths of the whole, within bounds."""
    size = min(max(total_bytes // PART_COUNT, MIN_PART_BYTES), MAX_PART_BYTES)
    starts = range(0, total_bytes, size)
    return [Part(n, start, min(size, total_bytes - start)) for n, start in enumerate(starts)]


class PartialBlob:
    """The files of one unfinished blob. One writer at a time, whichever process it is in."""

    def __init__(self, blob: pathlib.Path, total_bytes: int) -> None:
        self._blob = blob
        self.total_bytes = total_bytes
        self.path = blob.with_name(f"{blob.name}-partial")
        self.parts: list[Part] = []
        self._descriptor = -1
        self._saving = threading.Lock()

    def open(self) -> bool:
        """Takes up what is there when it fits this blob, else starts anew. Raises NoSpace.

        False while another process writes it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with full_disk_named(self.path.parent, self.total_bytes):
            descriptor = os.open(self.path, flags, 0o644)
        if not self._is_ours(descriptor):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        self.parts = self._saved_parts() or self._begin()
        os.ftruncate(descriptor, self.total_bytes)
        return True

    def _is_ours(self, descriptor: int) -> bool:
        """The lock is ours, and the file is still the one that has the name."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except (BlockingIOError, FileNotFoundError):
            return False

    def _begin(self) -> list[Part]:
        """Every part is put on record before a byte is written: parts that do not tile are void."""
        os.ftruncate(self._descriptor, 0)
        for path in self._state_files():
            path.unlink(missing_ok=True)
        parts = plan_parts(self.total_bytes)
        for part in parts:
            self._record(part, 0)
        fsync_folder(self.path.parent)
        return parts

    def _state_files(self) -> list[pathlib.Path]:
        pattern = re.compile(re.escape(self.path.name) + r"-(\d{1,5})")
        return [path for path in self.path.parent.iterdir() if pattern.fullmatch(path.name)]

    def _saved_parts(self) -> list[Part]:
        """The saved parts if they tile the blob exactly; [] otherwise."""
        saved: list[SavedPart] = []
        for path in self._state_files():
            try:
                saved.append(msgspec.json.decode(path.read_bytes(), type=SavedPart))
            except (OSError, msgspec.MsgspecError):
                return []
        saved.sort(key=lambda part: part.offset)
        if not _tiles(saved, self.total_bytes):
            return []
        # What is on record cannot lie beyond what the file holds.
        held = os.fstat(self._descriptor).st_size
        return [
            Part(part.n, part.offset, part.size, max(0, min(part.completed, held - part.offset)))
            for part in saved
        ]

    def read(self, byte_count: int) -> bytes:
        """The first bytes of the file."""
        return os.pread(self._descriptor, byte_count, 0)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Bytes read from there; 0 at the end of the file."""
        return os.preadv(self._descriptor, [buffer], offset)

    def leading_bytes(self) -> int:
        """Bytes from the first on that are written without a gap."""
        position = 0
        for part in self.parts:
            position += part.written
            if not part.is_done:
                break
        return position

    def append(self, part: Part, chunks: Sequence[bytes]) -> None:
        """Writes where the part stopped. Raises NoSpace; what was written before that counts."""
        for group in (chunks[i : i + 512] for i in range(0, len(chunks), 512)):
            size = sum(map(len, group))
            with full_disk_named(self.path.parent, size):
                written = os.pwritev(self._descriptor, group, part.offset + part.written)
                part.written += written
            if written < size:
                self.append(part, [b"".join(group)[written:]])

    def save(self) -> None:
        """Syncs the data, then says so: the order is what makes the record true after a power cut."""
        with self._saving:
            changed = [(part, part.written) for part in self.parts if part.written > part.completed]
            if not changed or self._descriptor < 0:
                return
            with full_disk_named(self.path.parent, 0):
                _sync_data(self._descriptor)
                for part, written in changed:
                    self._record(part, written)
                    part.completed = written

    def _record(self, part: Part, completed: int) -> None:
        """Old or new after a power cut, never half: so the folder needs no sync of its own."""
        path = self.path.with_name(f"{self.path.name}-{part.n}")
        temporary = path.with_name(f".tmp-{path.name}")
        saved = SavedPart(part.n, part.offset, part.size, completed)
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(saved) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def written_bytes(self) -> int:
        return sum(part.written for part in self.parts)

    def close(self) -> None:
        with self._saving:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def discard(self) -> None:
        """Removes every trace."""
        self.path.unlink(missing_ok=True)
        self._forget_parts()
        self.close()

    def finish(self) -> None:
        """Gives the verified content its name. The part files go last: a cut here costs nothing."""
        os.fsync(self._descriptor)
        self.path.replace(self._blob)
        fsync_folder(self._blob.parent)
        self._forget_parts()
        self.close()

    def _forget_parts(self) -> None:
        stray = self.path.parent.glob(f".tmp-{self.path.name}-*")
        for path in [*self._state_files(), *stray]:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _tiles(parts: list[SavedPart], total_bytes: int) -> bool:
    position = 0
    for part in parts:
        if part.offset != position or part.size <= 0 or not 0 <= part.completed <= part.size:
            return False
        position += part.size
    return position == total_bytes and 0 < len(parts) <= MAX_PARTS


def _sync_data(descriptor: int) -> None:
    # macOS has no fdatasync.
    getattr(os, "fdatasync", os.fsync)(descriptor)
