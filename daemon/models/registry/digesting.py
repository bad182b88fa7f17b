"""The digest of a file that is still growing, so that it is known soon after the last byte came.

What is hashed is read back from the file, from its first byte on and in order, never taken from what
the network gave: the digest is over what is on disk, also of what an earlier process wrote.
"""

from __future__ import annotations

import hashlib
import os

from daemon.models.registry.parts import PartialBlob

_READ_BYTES = 4 << 20


class FollowingDigest:
    """Follows one open `PartialBlob`. Its methods block and are called by one thread at a time."""

    def __init__(self, partial: PartialBlob) -> None:
        self._partial = partial
        self._hash = hashlib.sha256()
        self._position = 0
        self._buffer = bytearray(_READ_BYTES)
        self.is_stopped = False

    def advance(self) -> bool:
        """Takes what is there now; soon after `is_stopped` it returns. False: there was little."""
        before = self._position
        while not self.is_stopped and self._lag() >= _READ_BYTES:
            self._take(_READ_BYTES)
        return self._position > before

    def finish(self) -> str:
        """The digest in hex of everything. All parts are written."""
        while lag := self._lag():
            self._take(min(lag, _READ_BYTES))
        return self._hash.hexdigest()

    def _lag(self) -> int:
        return self._partial.leading_bytes() - self._position

    def _take(self, size: int) -> None:
        view = memoryview(self._buffer)[:size]
        count = self._partial.read_into(view, self._position)
        if count == 0:
            raise OSError(f"{os.fspath(self._partial.path)} became shorter")
        self._hash.update(view[:count])
        self._position += count
