"""The model store: manifests by name and blobs by digest, on disk, shared with other daemons.

Layout and bytes are contract.md §5, so that a store written here is readable by the field's other
servers and the other way round. Everything is written beside, fsynced and renamed; manifests only
after all their blobs. Writes and removals hold a file lock, so two daemons on one store do no harm.
A store that Hearth did not make is never written: `StoreReadOnly` names the way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import pathlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterable, Iterator

import msgspec

from daemon.errors import DaemonError, Internal, Invalid, NotFound, StoreReadOnly
from daemon.models import collection
from daemon.models.blobs import Blobs, BlobWriter, Progress, take_file
from daemon.models.durable import fsync_folder, locked, make_folder, write_durably
from daemon.models.manifest import (
    Manifest,
    decode_manifest,
    encode_manifest,
    manifest_digest,
    mentioned_digests,
)
from daemon.models.marker import Marker, claim, write_marker
from daemon.models.name import ModelName, name_from_parts
from daemon.models.resolved import ResolvedModel, read_model

log = logging.getLogger(__name__)

_MAX_MANIFEST_BYTES = 16 << 20
# Uploads are hashed and written in pieces of at least this, one thread hop each.
_BATCH_BYTES = 1 << 20
LOCK_FILE = ".hearth-lock"


class StoredManifest(msgspec.Struct, frozen=True, kw_only=True):
    """One manifest file. `digest` is hex over its bytes."""

    name: ModelName
    digest: str
    modified_seconds: float
    manifest: Manifest


class Store:
    """`marker` None: read-only. Methods that read are quick and plain; those that write are async."""

    def __init__(
        self, root: pathlib.Path, marker: Marker | None, *, no_prune: bool = False
    ) -> None:
        self.root = root
        self.blobs = Blobs(root / "blobs")
        self._manifests = root / "manifests"
        self._marker = marker
        self._no_prune = no_prune
        self._pins: Counter[str] = Counter()
        self._pins_guard = threading.Lock()

    def __repr__(self) -> str:
        kind = self._marker.name.lower() if self._marker else "read-only"
        return f"<Store {kind}, {len(self.names())} models>"

    @property
    def is_writable(self) -> bool:
        return self._marker is not None

    # ---- reading ----

    def names(self) -> list[ModelName]:
        """All names with a manifest file, readable or not, in order."""
        return [name for name, _ in self._manifest_files()]

    def is_empty(self) -> bool:
        return not self.names()

    def manifests(self) -> list[StoredManifest]:
        """All readable manifests; what cannot be read is left out."""
        found: list[StoredManifest] = []
        for name, _ in self._manifest_files():
            with contextlib.suppress(DaemonError):
                found.append(self._read(name))
        return found

    def find(self, name: ModelName) -> ModelName | None:
        """The stored spelling of `name`, if there is such a model."""
        spelled = self.spelling(name)
        return spelled if self._manifest_path(spelled).is_file() else None

    def spelling(self, name: ModelName) -> ModelName:
        """Each part as some stored manifest already spells it, else as given (contract.md §4.3)."""
        if self._is_spelled_exactly(name):
            return name
        stored = [found.parts for found in self.names()]
        parts: list[str] = []
        for index, part in enumerate(name.parts):
            same = part.casefold()
            spellings = {other[index] for other in stored if other[index].casefold() == same}
            parts.append(part if part in spellings else min(spellings, default=part))
        return name_from_parts(tuple(parts))

    def resolve(self, name: ModelName) -> ResolvedModel:
        """The model with its text layers. Raises NotFound, or Internal when it is damaged."""
        found = self.find(name)
        if found is None:
            raise NotFound(f"model '{name.short}' not found")
        stored = self._read(found)
        return read_model(
            found, stored.digest, stored.modified_seconds, stored.manifest, self.blobs
        )

    def manifest_bytes(self, name: ModelName) -> bytes:
        """A model's manifest as it lies on disk. Raises NotFound, Internal."""
        spelled = self.spelling(name)
        return self._read_bytes(spelled, self._manifest_path(spelled))[0]

    def _is_spelled_exactly(self, name: ModelName) -> bool:
        # Listing instead of opening: some filesystems open any spelling.
        folder = self._manifests
        for part in name.parts:
            try:
                if part not in (entry.name for entry in folder.iterdir()):
                    return False
            except (FileNotFoundError, NotADirectoryError):
                return False
            folder = folder / part
        return folder.is_file()

    def _manifest_path(self, name: ModelName) -> pathlib.Path:
        return self._manifests.joinpath(*name.parts)

    def _manifest_files(self) -> Iterator[tuple[ModelName, pathlib.Path]]:
        for path in sorted(self._manifests.glob("*/*/*/*")):
            with contextlib.suppress(Invalid, OSError):
                name = name_from_parts(path.relative_to(self._manifests).parts)
                if path.is_file():
                    yield name, path

    def _read(self, name: ModelName) -> StoredManifest:
        """Raises NotFound, or Internal for what is no manifest."""
        path = self._manifest_path(name)
        data, modified_seconds = self._read_bytes(name, path)
        try:
            manifest = decode_manifest(data)
        except Invalid as error:
            raise Internal(f"model '{name.short}' is damaged: {error}") from error
        return StoredManifest(
            name=name,
            digest=manifest_digest(data),
            modified_seconds=modified_seconds,
            manifest=manifest,
        )

    def _read_bytes(self, name: ModelName, path: pathlib.Path) -> tuple[bytes, float]:
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_MANIFEST_BYTES + 1)
            modified_seconds = path.stat().st_mtime
        except FileNotFoundError:
            raise NotFound(f"model '{name.short}' not found") from None
        except OSError as error:
            raise Internal(f"model '{name.short}' cannot be read: {error.strerror}") from error
        if len(data) > _MAX_MANIFEST_BYTES:
            raise Internal(f"model '{name.short}' is damaged: its manifest is too large")
        return data, modified_seconds

    # ---- blobs ----

    async def put_blob(self, chunks: AsyncIterator[bytes], expected: str | None = None) -> str:
        """Stores the stream and returns its hex digest; hashing and writing happen in threads.

        Content that is not what `expected` (hex) says is kept under its true digest, and Invalid is
        raised. Raises NoSpace, StoreReadOnly. Cancelled or failing streams leave nothing.
        """
        self.require_writable()
        writer = BlobWriter(self.blobs)
        try:
            held = bytearray()
            async for chunk in chunks:
                held += chunk
                if len(held) >= _BATCH_BYTES:
                    await asyncio.to_thread(writer.write, bytes(held))
                    held.clear()
            digest = await asyncio.to_thread(self._finish_blob, writer, bytes(held))
        finally:
            # In a thread: it waits for a write that a cancelled request left running.
            await asyncio.shield(asyncio.to_thread(writer.abandon))
        if expected is not None and digest != expected:
            raise Invalid(f'digest mismatch, expected "sha256:{expected}", got "sha256:{digest}"')
        return digest

    def _finish_blob(self, writer: BlobWriter, rest: bytes) -> str:
        writer.write(rest)
        digest = writer.finish()
        with self._locked():
            self.blobs.settle(writer.path, digest)
        return digest

    async def put_bytes(self, data: bytes) -> bool:
        """Stores a small blob; False when it was there already. Raises NoSpace, StoreReadOnly."""
        self.require_writable()
        return await asyncio.to_thread(self._put_bytes, data)

    def _put_bytes(self, data: bytes) -> bool:
        with self._locked():
            return self._put_bytes_locked(data)

    def _put_bytes_locked(self, data: bytes) -> bool:
        digest = hashlib.sha256(data).hexdigest()
        if self.blobs.has(digest):
            self.blobs.touch(digest)
            return False
        write_durably(self.blobs.path(digest), data, temporary_folder=self.blobs.folder)
        return True

    async def link_blob(self, source: pathlib.Path, progress: Progress) -> str:
        """Takes a file in without copying where that is possible; returns its hex digest.

        `progress(done_bytes, total_bytes)` is called from a thread. Raises Invalid, NoSpace,
        StoreReadOnly; OSError when `source` cannot be read.
        """
        self.require_writable()
        cancelled = threading.Event()
        task = asyncio.create_task(asyncio.to_thread(self._link_blob, source, progress, cancelled))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait({task})
            raise

    def _link_blob(
        self, source: pathlib.Path, progress: Progress, cancelled: threading.Event
    ) -> str:
        temporary, digest = take_file(self.blobs, source, progress, cancelled)
        try:
            with self._locked():
                self.blobs.settle(temporary, digest)
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    # ---- manifests ----

    async def write_manifest(
        self, name: ModelName, manifest: Manifest, small_blobs: Iterable[bytes] = ()
    ) -> ModelName:
        """Makes `name` this manifest and returns its stored spelling.

        `small_blobs` that another daemon removed meanwhile are written again. Raises Internal when
        another blob of it is not here (then nothing changes), StoreReadOnly, NoSpace. What only the
        manifest before it used is removed, in stores that Hearth made.
        """
        self.require_writable()
        data, small = encode_manifest(manifest), tuple(small_blobs)
        required = mentioned_digests(data)
        return (await asyncio.to_thread(self._write_manifest, name, data, required, small))[0]

    async def write_manifest_bytes(
        self, name: ModelName, data: bytes, required: Iterable[str]
    ) -> int:
        """A registry's manifest, byte for byte, whose blobs are `required` (hex).

        Returns how many blobs of the manifest before it were removed. Raises as write_manifest.
        """
        self.require_writable()
        return (await asyncio.to_thread(self._write_manifest, name, data, set(required)))[1]

    async def copy(self, source: ModelName, destination: ModelName) -> None:
        """A byte copy of the manifest. Raises NotFound, StoreReadOnly."""
        self.require_writable()
        found = self.find(source)
        if found is None:
            raise NotFound(f'model "{source.short}" not found')
        if self.spelling(destination) != found:
            data, _ = self._read_bytes(found, self._manifest_path(found))
            required = mentioned_digests(data)
            await asyncio.to_thread(self._write_manifest, destination, data, required)

    def _write_manifest(
        self, name: ModelName, data: bytes, required: set[str], small_blobs: tuple[bytes, ...] = ()
    ) -> tuple[ModelName, int]:
        """(stored spelling, blobs removed)."""
        with self._locked():
            for blob in small_blobs:
                self._put_bytes_locked(blob)
            for digest in required:
                if not self.blobs.has(digest):
                    raise Internal(f"blob sha256:{digest} is not in the store")
            name = self.spelling(name)
            path = self._manifest_path(name)
            before = path.read_bytes() if path.is_file() else b""
            make_folder(path.parent)
            write_durably(path, data, temporary_folder=self._manifests)
            removed = 0
            if self._marker is Marker.MADE and not self._no_prune:
                removed = self.collect(mentioned_digests(before))
        return name, removed

    async def delete(self, name: ModelName) -> None:
        """Removes the manifest, and blobs that no manifest on disk mentions. Raises NotFound."""
        self.require_writable()
        await asyncio.to_thread(self._delete, name)

    def _delete(self, name: ModelName) -> None:
        with self._locked():
            found = self.find(name)
            if found is None:
                raise NotFound(f"model '{name.short}' not found")
            path = self._manifest_path(found)
            candidates = mentioned_digests(path.read_bytes())
            path.unlink()
            fsync_folder(path.parent)
            collection.remove_empty_parents(path.parent, self._manifests)
            self.collect(candidates)

    # ---- collection ----

    @contextlib.contextmanager
    def pinned(self, digests: Iterable[str]) -> Generator[None]:
        """Keeps these blobs (hex) from being collected here while a model is being made of them."""
        held = list(digests)
        with self._pins_guard:
            self._pins.update(held)
        try:
            yield
        finally:
            with self._pins_guard:
                self._pins.subtract(held)

    def collect(self, candidates: Iterable[str]) -> int:
        """How many of these blobs (hex), not mentioned or pinned, were removed. Within `exclusive`."""
        with self._pins_guard:
            pinned = {digest for digest, count in self._pins.items() if count > 0}
        kept = pinned | collection.mentioned_anywhere(self._manifests)
        return sum(self.blobs.remove(digest) > 0 for digest in set(candidates) - kept)

    async def prune(self) -> int:
        """At start: removes stale, unmentioned files. Bytes freed; 0 in stores not made here."""
        if self._marker is not Marker.MADE or self._no_prune:
            return 0
        return await asyncio.to_thread(self._prune)

    def _prune(self) -> int:
        with self._locked():
            try:
                for name in self.names():
                    self._read(name)
            except DaemonError:
                return 0  # what a damaged manifest means to keep is not for us to guess
            kept = collection.mentioned_anywhere(self._manifests)
            return collection.prune(self.blobs, self._manifests, kept)

    # ---- rights ----

    def require_writable(self) -> None:
        """Raises StoreReadOnly."""
        if self._marker is None:
            raise StoreReadOnly(
                f"the model store {self.root} was not made by Hearth and is read-only; "
                "`hearth adopt` makes it writable"
            )

    async def adopt(self) -> None:
        """Makes a store of another program writable here; only `delete` will ever remove from it."""
        if self._marker is None:
            await asyncio.to_thread(write_marker, self.root, Marker.ADOPTED)
            self._marker = Marker.ADOPTED

    @contextlib.contextmanager
    def exclusive(self) -> Generator[None]:
        """Keeps every other writer out. Blocking; of no effect on a store that is only read."""
        with self._locked() if self.is_writable else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        self.require_writable()
        with locked(self.root / LOCK_FILE):
            yield


async def open_store(root: pathlib.Path, *, is_foreign: bool, no_prune: bool = False) -> Store:
    """The store at `root`: made there when nothing is and the path is our own, pruned when ours."""
    marker = await asyncio.to_thread(claim, root, is_foreign=is_foreign)
    store = Store(root, marker, no_prune=no_prune)
    freed_bytes = await store.prune()
    log.info("%r at %s, %d bytes pruned", store, root, freed_bytes)
    return store
