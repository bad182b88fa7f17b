"""A blob on its way: one sparse file and a small state file per part, so that nothing is fetched twice.

`<blob>-partial` holds the bytes, `<blob>-partial-<N>` says of part N where it lies and how much of it
is on disk *and synced*. The names and the JSON are the field's, so a download that another server of
this format began is finished here, and the other way round. Blocking: called from threads.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re

import msgspec

from daemon.models.durable import fsync_folder, full_disk_named, write_durably

PART_COUNT = 16
MIN_PART_BYTES = 100_000_000
MAX_PART_BYTES = 1_000_000_000
MAX_PARTS = 4096
# The GGUF header is fetched first, before anything else is asked for.
HEADER_BYTES = 16 << 20


class Part(msgspec.Struct, rename="pascal", omit_defaults=False):
    """`completed` counts bytes that survived an fsync. Owned by the one task that fetches it."""

    n: int
    offset: int
    size: int
    completed: int = 0

    @property
    def is_done(self) -> bool:
        return self.completed >= self.size


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

    def open(self) -> None:
        """Takes up what is there when it fits this blob, else starts anew. Raises NoSpace."""
        self.parts = self._saved_parts()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.path, flags, 0o644)
        if not self.parts:
            os.ftruncate(self._descriptor, 0)
            self.parts = plan_parts(self.total_bytes)
            for part in self.parts:
                self.save(part)
        os.ftruncate(self._descriptor, self.total_bytes)

    def _saved_parts(self) -> list[Part]:
        """The saved parts if they tile the blob exactly; [] otherwise."""
        if not self.path.is_file() or self.path.is_symlink():
            return []
        pattern = re.compile(re.escape(self.path.name) + r"-(\d{1,4})")
        parts: list[Part] = []
        for path in self.path.parent.iterdir():
            if pattern.fullmatch(path.name):
                try:
                    parts.append(msgspec.json.decode(path.read_bytes(), type=Part))
                except (OSError, msgspec.MsgspecError):
                    return []
        parts.sort(key=lambda part: part.offset)
        return parts if _tiles(parts, self.total_bytes) else []

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Raises NoSpace."""
        rest = memoryview(data)
        with full_disk_named(self.path.parent, len(rest)):
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                offset += written
                rest = rest[written:]

    def save(self, part: Part) -> None:
        """Syncs the data, then says so: the order is what makes `completed` true after a power cut."""
        with full_disk_named(self.path.parent, 0):
            os.fdatasync(self._descriptor)
        path = self.path.with_name(f"{self.path.name}-{part.n}")
        write_durably(path, msgspec.json.encode(part) + b"\n", temporary_folder=path.parent)

    def restart(self) -> None:
        """Forgets everything fetched: for a server that ignores ranges, or a wrong digest."""
        self.parts = [Part(part.n, part.offset, part.size) for part in self.parts]
        for part in self.parts:
            self.save(part)

    def completed_bytes(self) -> int:
        return sum(part.completed for part in self.parts)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Removes every trace."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.forget_parts()

    def forget_parts(self) -> None:
        for part in self.parts:
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(f"{self.path.name}-{part.n}").unlink()

    def finish(self) -> None:
        """Gives the verified content its name. The part files go last: a cut here costs nothing."""
        os.fsync(self._descriptor)
        self.close()
        self.path.replace(self._blob)
        fsync_folder(self._blob.parent)
        self.forget_parts()


def _tiles(parts: list[Part], total_bytes: int) -> bool:
    position = 0
    for part in parts:
        if part.offset != position or part.size <= 0 or not 0 <= part.completed <= part.size:
            return False
        position += part.size
    return position == total_bytes and len(parts) <= MAX_PARTS
