"""A folder that appears whole or not at all: written beside, synced, renamed.

Its name says whose it is (`<final>.staging-<pid>`), so that what a power cut leaves can be swept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

from converters.errors import NoSpace
from converters.progress import Progress

# Left free beside the artifact, so that the daemon can still write its own small files.
SPARE_BYTES = 64 << 20
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def prepare(final: pathlib.Path) -> None:
    """Makes the folder that `final` will be in, for good. Before any confinement."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for folder in (final.parent, final.parent.parent):
        _sync(folder)


def check_space(folder: pathlib.Path, needed_bytes: int) -> None:
    """Raises NoSpace, with both sizes, when the folder's filesystem cannot take that much more."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free_bytes:
        raise NoSpace(
            f"the artifact needs {needed_bytes} bytes beside {SPARE_BYTES} spare ones,"
            f" {free_bytes} are free"
        )


@contextlib.contextmanager
def staged(final: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `final`; gone afterwards unless `publish` has renamed it.

    Raises NoSpace where the disk fills up meanwhile.
    """
    staging = final.with_name(f"{final.name}.staging-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        yield staging
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(f"the disk filled up: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sync_and_publish(
    staging: pathlib.Path, final: pathlib.Path, byte_count: int, progress: Progress
) -> None:
    """The end of every conversion: `byte_count` bytes on the disk, then under their final name."""
    progress.start("sync", byte_count)
    _sync_files(staging)
    publish(staging, final)
    progress.finish()


def _sync_files(folder: pathlib.Path) -> None:
    for path in sorted(folder.iterdir()):
        _sync(path)
    _sync(folder)


def publish(staging: pathlib.Path, final: pathlib.Path) -> None:
    """Renames; when another conversion was faster its folder stays, being the same."""
    try:
        staging.rename(final)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
    _sync(final.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
