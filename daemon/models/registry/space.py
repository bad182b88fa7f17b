"""Is there room for a model and for what it is converted to? The decision is pure."""

from __future__ import annotations

import pathlib
import shutil

import msgspec

from daemon.errors import NoSpace

# Left free on every filesystem that a pull fills: others live there too.
RESERVE_BYTES = 1 << 30


class Disk(msgspec.Struct, frozen=True):
    """`device` tells filesystems apart."""

    device: int
    free_bytes: int


def disk_of(path: pathlib.Path) -> Disk:
    """The filesystem where `path` lies or would lie."""
    while not path.exists():
        path = path.parent
    return Disk(path.stat().st_dev, shutil.disk_usage(path).free)


def missing_bytes(blob: pathlib.Path, size: int) -> int:
    """What a download still has to write; what an earlier one wrote is on the disk already."""
    if blob.exists():
        return 0
    try:
        status = blob.with_name(f"{blob.name}-partial").stat()
    except FileNotFoundError:
        return size
    return max(0, size - status.st_blocks * 512)


def plan_space(
    *, blob_bytes: int, blobs: Disk, artifact_bytes: int, artifacts: Disk, reserve_bytes: int
) -> str:
    """Empty when both fit; the reason when only the artifact does not. Raises NoSpace for the blobs."""
    needed = blob_bytes + reserve_bytes
    if blob_bytes and needed > blobs.free_bytes:
        raise NoSpace(f"not enough space: {needed} bytes needed, {blobs.free_bytes} bytes free")
    if not artifact_bytes:
        return ""
    needed = artifact_bytes + reserve_bytes
    if blobs.device == artifacts.device:
        needed += blob_bytes
    if needed <= artifacts.free_bytes:
        return ""
    return f"{needed} bytes needed, {artifacts.free_bytes} bytes free"
