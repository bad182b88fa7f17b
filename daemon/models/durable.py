"""Files that survive a pulled plug: written beside, fsynced, renamed, the folder fsynced.

Blocking; callers on the event loop go through a thread. A full disk becomes `NoSpace` here, once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import shutil
from collections.abc import Generator

from daemon.errors import NoSpace

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def fsync_folder(folder: pathlib.Path) -> None:
    """Makes renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: pathlib.Path) -> None:
    """Like `mkdir -p`, with each new folder's entry in its parent made durable."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o755, exist_ok=True)
    fsync_folder(folder.parent)


def write_durably(
    path: pathlib.Path, data: bytes, *, temporary_folder: pathlib.Path, mode: int = 0o644
) -> None:
    """Replaces `path` whole or not at all. `temporary_folder` is on the same filesystem.

    Nobody else can read any of it before it has its final `mode`.
    """
    temporary = temporary_folder / f".tmp-{secrets.token_hex(8)}"
    with full_disk_named(temporary_folder, len(data)):
        try:
            with open(temporary, "xb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def full_disk_named(folder: pathlib.Path, needed_bytes: int) -> Generator[None]:
    """Turns "no space left" into `NoSpace` with what was needed and what there is."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free_bytes = shutil.disk_usage(folder).free
        raise NoSpace(
            f"no space left: {needed_bytes} bytes needed, {free_bytes} bytes free"
        ) from error


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Generator[None]:
    """Holds an exclusive lock on `path`: against other processes and other threads of this one."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
