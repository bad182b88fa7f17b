"""The `blobs/` folder: content under its own SHA-256, put there whole or not at all.

A path is only ever made from 64 hex digits, so none leads out of the folder. New content goes to a
temporary file in the same folder (`sha256-<digits>`, which every server of this format cleans up),
is hashed on the way, fsynced and renamed. Blocking: the store calls this from threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import re
import secrets
import stat
import sys
import threading
from collections.abc import Callable, Iterator

from daemon.errors import Cancelled, Invalid
from daemon.models.durable import fsync_folder, full_disk_named

_HEX = re.compile(r"[0-9a-f]{64}")
_BLOB_NAME = re.compile(r"sha256[-:]([0-9a-fA-F]{64})")
_CHUNK_BYTES = 4 << 20
_FICLONE = 0x40049409

Progress = Callable[[int, int], None]


class Blobs:
    """Paths and single files. What refers to them, and the lock, are the store's business."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def path(self, hex_digest: str) -> pathlib.Path:
        """Where the blob lies or would lie. Raises Invalid unless it is a digest."""
        if not _HEX.fullmatch(hex_digest):
            raise Invalid("invalid digest format")
        old_spelling = self.folder / f"sha256:{hex_digest}"
        path = self.folder / f"sha256-{hex_digest}"
        return old_spelling if old_spelling.exists() and not path.exists() else path

    def has(self, hex_digest: str) -> bool:
        return self.path(hex_digest).is_file()

    def touch(self, hex_digest: str) -> None:
        """A blob taken into use again starts its hour of grace anew."""
        with contextlib.suppress(PermissionError):  # only a file's owner may set its time
            os.utime(self.path(hex_digest))

    def remove(self, hex_digest: str) -> int:
        """Bytes freed; 0 when there was none."""
        path = self.path(hex_digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def files(self) -> Iterator[tuple[pathlib.Path, str | None]]:
        """Every plain file with its hex digest, None for temporary and foreign ones."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            if path.is_symlink() or not path.is_file():
                continue
            match = _BLOB_NAME.fullmatch(path.name)
            yield path, match[1].lower() if match else None

    def temporary(self) -> pathlib.Path:
        """A new name for content whose digest is not known yet."""
        return self.folder / f"sha256-{secrets.randbelow(10**18):018d}"

    def settle(self, temporary: pathlib.Path, hex_digest: str) -> None:
        """Gives finished, fsynced content its name; what is already there stays."""
        if self.has(hex_digest):
            temporary.unlink(missing_ok=True)
            self.touch(hex_digest)
            return
        temporary.replace(self.path(hex_digest))
        fsync_folder(self.folder)


class BlobWriter:
    """One temporary file being filled. Calls may come from different threads, one after another.

    The file is opened by the first write, so that making a writer costs and leaves nothing.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._guard = threading.Lock()
        self._file: io.FileIO | None = None
        self._is_over = False
        self.path = blobs.temporary()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Raises NoSpace, or Cancelled after `abandon`."""
        with self._guard:
            file = self._open()
            rest = memoryview(data)
            while rest:
                with full_disk_named(self._blobs.folder, self.size + len(rest)):
                    written = file.write(rest)
                rest = rest[written:]
                self.size += written
            self._hash.update(data)

    def _open(self) -> io.FileIO:
        if self._is_over:
            raise Cancelled()
        if self._file is None:
            self._file = io.FileIO(self.path, "xb")
        return self._file

    def finish(self) -> str:
        """The hex digest of what was written; the file is durable but still has no blob's name."""
        with self._guard, full_disk_named(self._blobs.folder, self.size):
            file = self._open()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            file.close()
            self._is_over = True
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Leaves nothing behind; without effect on a file that was settled."""
        with self._guard:
            self._is_over = True
            if self._file is not None:
                self._file.close()
                self.path.unlink(missing_ok=True)


def take_file(
    blobs: Blobs, source: pathlib.Path, progress: Progress, cancelled: threading.Event
) -> tuple[pathlib.Path, str]:
    """A temporary file with the content of `source`, and its hex digest.

    A reflink where the filesystem has them, else a hard link, else a copy. Raises Invalid when
    `source` is no plain file or changes meanwhile, NoSpace, Cancelled.
    """
    source = source.resolve()
    writer = BlobWriter(blobs)
    temporary = writer.path
    # Not blocking: opening a named pipe must be refused, not waited for.
    with os.fdopen(os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise Invalid(f"{source.name} is not a plain file")
        try:
            if _reflink(file.fileno(), temporary) or _hard_link(source, temporary, before):
                digest = _hash_file(temporary, progress, cancelled)
            else:
                digest = _copy(file.fileno(), writer, progress, cancelled)
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise Invalid(f"{source.name} changed while it was read")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return temporary, digest


def _reflink(source: int, temporary: pathlib.Path) -> bool:
    if sys.platform != "linux":
        return False
    with temporary.open("xb") as file:
        try:
            fcntl.ioctl(file.fileno(), _FICLONE, source)
        except OSError:
            temporary.unlink()
            return False
    temporary.chmod(0o644)
    return True


def _hard_link(source: pathlib.Path, temporary: pathlib.Path, opened: os.stat_result) -> bool:
    try:
        os.link(source, temporary)
    except OSError:
        return False
    linked = temporary.stat()
    if (linked.st_dev, linked.st_ino) == (opened.st_dev, opened.st_ino):
        return True
    temporary.unlink()
    return False


def _hash_file(path: pathlib.Path, progress: Progress, cancelled: threading.Event) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(_CHUNK_BYTES):
            if cancelled.is_set():
                raise Cancelled()
            digest.update(chunk)
            done += len(chunk)
            if done > total:
                break  # it grows while it is read; the caller compares times and sizes
            progress(done, total)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _copy(source: int, writer: BlobWriter, progress: Progress, cancelled: threading.Event) -> str:
    total = os.fstat(source).st_size
    try:
        while chunk := os.read(source, _CHUNK_BYTES):
            if cancelled.is_set():
                raise Cancelled()
            writer.write(chunk)
            if writer.size > total:
                break
            progress(writer.size, total)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise
