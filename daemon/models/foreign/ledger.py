"""Digests of other programs' files, kept in `<home>/foreign.json` so that each is read through once.

Blocking. A file that changed has another identity, so a digest is never taken for another content's.
"""

from __future__ import annotations

import contextlib
import pathlib
import time

import msgspec

from daemon.models.durable import locked, make_folder, write_durably
from daemon.models.foreign.scan import Identity

_VERSION = 1
_FORGOTTEN_SECONDS = 365 * 86400
_MAX_ENTRIES = 50_000


class _Entry(msgspec.Struct, frozen=True):
    identity: Identity
    digest: str
    path: str
    hashed_at: float


class _Book(msgspec.Struct):
    version: int = _VERSION
    files: list[_Entry] = []


class Ledger:
    def __init__(self, home: pathlib.Path) -> None:
        self._path = home / "foreign.json"
        self._digests = {entry.identity: entry.digest for entry in self._read()}

    def digest_of(self, identity: Identity) -> str:
        """Hex, "" while it is not known."""
        return self._digests.get(identity, "")

    def remember(self, identity: Identity, digest: str, path: pathlib.Path) -> None:
        """On disk when this returns. Other daemons of this home may have written meanwhile."""
        self._digests[identity] = digest
        make_folder(self._path.parent)
        with locked(self._path.parent / ".foreign-lock"):
            now = time.time()
            kept = [
                entry
                for entry in self._read()
                if entry.identity != identity and now - entry.hashed_at < _FORGOTTEN_SECONDS
            ]
            kept.append(_Entry(identity, digest, str(path), now))
            data = msgspec.json.encode(_Book(files=kept[-_MAX_ENTRIES:]))
            write_durably(self._path, data, temporary_folder=self._path.parent)

    def _read(self) -> list[_Entry]:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            book = msgspec.json.decode(self._path.read_bytes(), type=_Book)
            if book.version == _VERSION:
                return book.files
        return []
