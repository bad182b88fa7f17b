"""The running daemon's keys: looked up for each request, their uses remembered and written rarely.

Owned by the event loop. The file is looked at (one `stat`) with every lookup, so that a key that was
removed, by this daemon or by hand, is refused from the next request on.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import pathlib

from daemon.errors import DaemonError
from daemon.lan.access import (
    AccessKey,
    KeyScope,
    add_key,
    digest_of,
    has_key_form,
    keys_path,
    now,
    read_keys,
    record_uses,
    remove_key,
    with_use,
)

WRITE_SECONDS = 60.0
_log = logging.getLogger("hearth.lan")
_Stamp = tuple[int, int, int] | None


class KeyRing:
    """`close` writes what was not written yet."""

    def __init__(self, home: pathlib.Path, *, write_seconds: float = WRITE_SECONDS) -> None:
        self._home = home
        self._path = keys_path(home)
        self._write_seconds = write_seconds
        self._by_digest: dict[str, AccessKey] = {}
        self._seen: _Stamp = None
        self._uses: dict[str, datetime.datetime] = {}
        self._writing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._by_digest)} keys>"

    def find(self, presented: str) -> AccessKey | None:
        """None for whatever is no key of ours; else the key, whose use is remembered.

        One digest and one lookup, whatever is presented and however many keys there are.
        """
        if not has_key_form(presented):
            return None
        self._refresh()
        key = self._by_digest.get(digest_of(presented))
        if key is None or key.has_expired(now()):
            return None
        self._note(key.digest)
        return key

    async def keys(self) -> list[AccessKey]:
        """As in the file, with the uses that are not written yet. Raises KeysDamaged."""
        known = await asyncio.to_thread(read_keys, self._home)
        return [with_use(key, self._uses) for key in known]

    async def add(self, name: str, scope: KeyScope, lifetime_seconds: float | None = None) -> str:
        """As `add_key`."""
        return await asyncio.to_thread(add_key, self._home, name, scope, lifetime_seconds)

    async def remove(self, name: str) -> int:
        """As `remove_key`."""
        return await asyncio.to_thread(remove_key, self._home, name)

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
            self._writing = None
        await self._write()

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._by_digest = {key.digest: key for key in read_keys(self._home)}
        except DaemonError as error:
            self._by_digest = {}
            _log.error("no key is accepted: %s", error)

    def _stamp(self) -> _Stamp:
        try:
            facts = self._path.stat()
        except OSError:
            return None
        # The change time too: a file may get an older one's size and time of writing.
        return facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns

    def _note(self, digest: str) -> None:
        self._uses[digest] = now()
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_later())

    async def _write_later(self) -> None:
        while self._uses:  # also for those that came while the others were written
            await asyncio.sleep(self._write_seconds)
            await self._write()
        self._writing = None

    async def _write(self) -> None:
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            await asyncio.to_thread(record_uses, self._home, uses)
        except (DaemonError, OSError) as error:
            _log.warning("when keys were last used could not be written: %s", error)
