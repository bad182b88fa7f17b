"""Tells other processes that an artifact is in use: a shared lock on its folder until this one ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib


def hold_artifact(folder: pathlib.Path) -> int | None:
    """The descriptor that carries the lock; None where the filesystem has no locks.

    Whoever removes artifacts takes the lock alone first. It is never given back: it ends with us.
    """
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor
