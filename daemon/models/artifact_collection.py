"""Removes artifacts and inspections whose source is gone: after 30 days, or at once after `rm`.

Works under the store's lock and one of the artifacts' own, so that two daemons do each other no harm.
Nothing is removed that a worker has loaded (it holds a shared lock on the folder) or a converter is
writing; what is removed is renamed first. A source counts as gone only if every folder answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import pathlib
import re
import secrets
import shutil
import time
from collections.abc import Generator, Iterable

from converters.artifact import adapted_base
from daemon.models import collection
from daemon.models.durable import fsync_folder, locked
from daemon.models.foreign.shelf import ForeignShelf
from daemon.models.jobs import Conversions
from daemon.models.store import Store

log = logging.getLogger(__name__)

KEPT_SECONDS = 30 * 86400
EVERY_SECONDS = 86400
UNREACHABLE_FILE = ".unreachable"
_LOCK_FILE = ".hearth-lock"
_DOOMED = ".removed-"
_SOURCE = re.compile(r"[0-9a-f]{64}")


class ArtifactCollector:
    """Owned by the event loop; the disk is worked on in a thread, one collection at a time."""

    def __init__(
        self,
        store: Store,
        foreign: ForeignShelf,
        conversions: Conversions,
        *,
        home: pathlib.Path,
        artifacts: pathlib.Path,
    ) -> None:
        self._store = store
        self._foreign = foreign
        self._conversions = conversions
        self._inspections = home / "inspections"
        self._caches = home / "cache"
        self._artifacts = artifacts
        self._one_at_a_time = asyncio.Lock()
        self._daily: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._daily = asyncio.create_task(self._every_day())

    async def close(self) -> None:
        if self._daily is not None:
            self._daily.cancel()
            await asyncio.gather(self._daily, return_exceptions=True)

    async def _every_day(self) -> None:
        while True:
            try:
                await self.collect()
            except Exception:  # tomorrow is another day
                log.exception("collecting artifacts failed")
            await asyncio.sleep(EVERY_SECONDS)

    async def collect(self, deleted: Iterable[str] = ()) -> int:
        """Bytes freed. `deleted` are source ids whose content was removed on purpose just now."""
        async with self._one_at_a_time:
            if not await self._foreign.refresh():
                return 0
            wanted = self._foreign.sources() | {job.source for job in self._conversions.jobs()}
            return await asyncio.to_thread(self._collect, wanted, frozenset(deleted))

    def _collect(self, wanted: set[str], deleted: frozenset[str]) -> int:
        if not self._artifacts.is_dir():
            return 0
        with self._store.exclusive(), locked(self._artifacts / _LOCK_FILE):
            wanted |= collection.mentioned_anywhere(self._store.root / "manifests")
            freed_bytes = self._remove_doomed()
            for folder in sorted(self._artifacts.iterdir()):
                if _SOURCE.fullmatch(folder.name) and folder.is_dir():
                    freed_bytes += self._look_at(folder, wanted, deleted)
            self._collect_inspections(wanted, deleted)
            self._collect_caches(wanted, deleted)
        return freed_bytes

    def _look_at(self, folder: pathlib.Path, wanted: set[str], deleted: frozenset[str]) -> int:
        note = folder / UNREACHABLE_FILE
        if folder.name in wanted:
            note.unlink(missing_ok=True)
            return sum(self._remove_orphan(each, wanted) for each in sorted(folder.iterdir()))
        if not note.exists():
            note.touch()
        if folder.name in deleted:
            os.utime(note, (0, 0))  # its time is over, even if a worker still has it today
        is_due = time.time() - note.stat().st_mtime > KEPT_SECONDS
        return self._remove(folder) if is_due else 0

    def _remove_orphan(self, variant: pathlib.Path, wanted: set[str]) -> int:
        """An adapter's artifact whose base is gone; made again in a moment, so at once."""
        base = adapted_base(variant.name)
        if not base or base in wanted:
            return 0
        with _free([variant]) as is_free:
            return self._remove_now(variant) if is_free else 0

    def _remove(self, folder: pathlib.Path) -> int:
        with _all_free(folder) as is_free:
            return self._remove_now(folder) if is_free else 0

    def _remove_now(self, folder: pathlib.Path) -> int:
        doomed = self._artifacts / f"{_DOOMED}{secrets.token_hex(8)}"
        folder.rename(doomed)
        fsync_folder(self._artifacts)
        log.info("removed the artifacts of %s, whose source is gone", folder.name)
        return _remove_tree(doomed)

    def _remove_doomed(self) -> int:
        """What a collection that was cut short left."""
        return sum(_remove_tree(doomed) for doomed in list(self._artifacts.glob(f"{_DOOMED}*")))

    def _collect_inspections(self, wanted: set[str], deleted: frozenset[str]) -> None:
        """Made again in a moment, so the time of the last run that wanted one is time enough."""
        for path in list(self._inspections.glob("*.json")):
            digest = path.name.split(".", 1)[0]
            age_seconds = time.time() - path.stat().st_mtime
            if digest in wanted:
                if age_seconds > EVERY_SECONDS:
                    os.utime(path)
            elif digest in deleted or age_seconds > KEPT_SECONDS:
                path.unlink(missing_ok=True)

    def _collect_caches(self, wanted: set[str], deleted: frozenset[str]) -> None:
        """What workers kept of chats goes with the model, even while one still runs."""
        for folder in list(self._caches.glob("*")):
            if not _SOURCE.fullmatch(folder.name) or folder.name in wanted:
                continue
            is_old = time.time() - folder.stat().st_mtime > KEPT_SECONDS
            if folder.name in deleted or is_old:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _all_free(folder: pathlib.Path) -> Generator[bool]:
    """Whether nothing uses any variant below `folder`; held so while the block runs."""
    with _free(path for path in folder.iterdir() if path.is_dir()) as is_free:
        yield is_free


@contextlib.contextmanager
def _free(variants: Iterable[pathlib.Path]) -> Generator[bool]:
    with contextlib.ExitStack() as stack:
        for variant in variants:
            if "staging" in variant.name:
                yield False
                return
            descriptor = os.open(variant, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True


def tree_bytes(folder: pathlib.Path) -> int:
    """Sizes of all plain files below `folder`."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(sizes) if folder.is_dir() else 0


def _remove_tree(folder: pathlib.Path) -> int:
    freed_bytes = tree_bytes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return freed_bytes
