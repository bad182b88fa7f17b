"""What may be removed from a store: only blobs that no manifest on disk mentions, parsed or not.

Blocking, and called with the store's lock held.
"""

from __future__ import annotations

import contextlib
import pathlib
import time

from daemon.models.blobs import Blobs
from daemon.models.manifest import mentioned_digests

# An upload whose manifest is still to come may lie about this long.
GRACE_SECONDS = 3600
# A download that was interrupted is worth more than the disk it takes, for this long.
PARTIAL_GRACE_SECONDS = 14 * 86400


def mentioned_anywhere(manifests: pathlib.Path) -> set[str]:
    """Hex of every digest in any file below `manifests/`, whatever the file is.

    A file that cannot be read raises OSError: then nothing may be removed at all.
    """
    found: set[str] = set()
    for path in manifests.rglob("*"):
        if path.is_file():
            found |= mentioned_digests(path.read_bytes())
    return found


def prune(blobs: Blobs, manifests: pathlib.Path, kept: set[str]) -> int:
    """Removes stale temporary files, unmentioned blobs and empty folders. Bytes freed."""
    freed_bytes = 0
    for path, digest in list(blobs.files()):
        if (digest is None or digest not in kept) and _is_stale(path):
            freed_bytes += path.stat().st_size
            path.unlink(missing_ok=True)
    for path in list(manifests.glob(".tmp-*")):
        if _is_stale(path):
            path.unlink(missing_ok=True)
    _remove_empty_folders(manifests)
    return freed_bytes


def _is_stale(path: pathlib.Path) -> bool:
    """By the later of both times: a hard link keeps its old modification time."""
    status = path.stat()
    grace_seconds = PARTIAL_GRACE_SECONDS if "-partial" in path.name else GRACE_SECONDS
    return time.time() - max(status.st_mtime, status.st_ctime) > grace_seconds


def _remove_empty_folders(root: pathlib.Path) -> None:
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove_empty_parents(folder: pathlib.Path, root: pathlib.Path) -> None:
    """Removes `folder` and its parents up to but without `root`, as long as they are empty."""
    while folder != root and root in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
