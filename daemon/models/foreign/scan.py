"""Finds the GGUF files of a folder. Blocking, bounded, opens each file for its first four bytes only."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import Literal

import msgspec

from daemon.models.split_parts import is_split_part

MAX_FILES = 20_000
MAX_DEPTH = 8
_MAGIC = b"GGUF"
_PROJECTOR = re.compile(r"(^|[-._])mmproj([-._]|$)", re.IGNORECASE)
Role = Literal["weights", "projector", "part"]


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """What tells, without reading it, that a file is the one that was hashed."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @property
    def provisional_id(self) -> str:
        """Stands for the content's digest (hex) as long as nobody needed to know that."""
        return hashlib.sha256(b"not hashed yet " + msgspec.json.encode(self)).hexdigest()


class FoundFile(msgspec.Struct, frozen=True):
    """`relative` is the path below the place; `path` may be a link to the file itself."""

    path: pathlib.Path
    relative: tuple[str, ...]
    identity: Identity
    role: Role

    @property
    def folder(self) -> tuple[str, ...]:
        return self.relative[:-1]


def identity_of(path: pathlib.Path) -> Identity:
    """Raises OSError."""
    status = path.stat()
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def scan(root: pathlib.Path) -> list[FoundFile]:
    """Every GGUF below `root`, by path; one content that several links name only once."""
    found: list[FoundFile] = []
    seen: set[Identity] = set()
    for path in _candidates(root, MAX_DEPTH):
        if len(found) >= MAX_FILES:
            break
        file = _look(path, root)
        if file is not None and file.identity not in seen:
            seen.add(file.identity)
            found.append(file)
    return found


def _candidates(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    """Links to files are followed, links to folders not: those can lead in circles."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth > 0:
                yield from _candidates(pathlib.Path(entry.path), depth - 1)
        elif entry.name.lower().endswith(".gguf"):
            yield pathlib.Path(entry.path)


def _look(path: pathlib.Path, root: pathlib.Path) -> FoundFile | None:
    """None for what cannot be read or is no GGUF, such as a download under way."""
    try:
        # Not blocking: a named pipe of that name would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or file.read(4) != _MAGIC:
                return None
        return FoundFile(path, path.relative_to(root).parts, identity_of(path), _role(path.name))
    except OSError:
        return None


def _role(file_name: str) -> Role:
    if is_split_part(file_name):
        return "part"
    return "projector" if _PROJECTOR.search(file_name[: -len(".gguf")]) else "weights"
