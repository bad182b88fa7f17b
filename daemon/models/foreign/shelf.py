"""The models in other programs' folders, beside our own shelf: found, named, read where they lie.

Nothing is written there; only what was adopted can be removed, and only by `delete`. A disk that is
gone takes its models out of the list and nothing else: what is known of them stays for its return.
Owned by the event loop; the disk is read in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pathlib
import threading
import time

import msgspec

from daemon.errors import Cancelled, DaemonError, Invalid, NotFound, NotYet, StoreReadOnly
from daemon.models.durable import fsync_folder, write_durably
from daemon.models.foreign.catalogue import (
    Catalogue,
    ForeignModel,
    read_catalogue,
    resolved,
    stored_sources,
)
from daemon.models.foreign.ledger import Ledger
from daemon.models.foreign.places import Kind, Place, plan_places, usual_folders
from daemon.models.foreign.scan import FoundFile, identity_of
from daemon.models.manifest import Manifest
from daemon.models.marker import MARKER_FILE, Marker, read_marker
from daemon.models.name import ModelName
from daemon.models.resolved import BlobFile, ResolvedModel
from daemon.models.store import Store

log = logging.getLogger(__name__)

# A look is not repeated within this; one that takes longer than the patience goes on by itself.
FRESH_SECONDS = 2.0
PATIENCE_SECONDS = 2.0
# For a name that nobody knows the last look may be this old; each such request costs one.
UNKNOWN_FRESH_SECONDS = 0.2
_CHUNK_BYTES = 4 << 20


class ForeignShelf:
    """`folders` are what the owner named; `is_auto` adds the usual ones."""

    def __init__(
        self,
        own: Store,
        home: pathlib.Path,
        folders: tuple[pathlib.Path, ...] = (),
        *,
        is_auto: bool = False,
    ) -> None:
        self._own = own
        self._folders = folders
        self._is_auto = is_auto
        self._home = home
        self._ledger: Ledger | None = None
        self._catalogue = Catalogue()
        self._by_id: dict[str, FoundFile] = {}
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self._hashing: dict[str, asyncio.Task[str]] = {}
        self._is_closing = threading.Event()

    def __repr__(self) -> str:
        return f"<ForeignShelf {len(self._catalogue.models)} models>"

    @property
    def is_used(self) -> bool:
        return self._is_auto or bool(self._folders)

    @property
    def catalogue(self) -> Catalogue:
        """What the last look found."""
        return self._catalogue

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger(self._home)
        return self._ledger

    async def start(self) -> None:
        if self.is_used:
            await self.refresh()
            log.info("%r", self)
        elif found := [str(folder) for folder in usual_folders() if folder.is_dir()]:
            log.info("HEARTH_FOREIGN=auto would also show the models in %s", ", ".join(found))

    async def close(self) -> None:
        self._is_closing.set()
        await asyncio.gather(*self._hashing.values(), return_exceptions=True)
        if self._look is not None:
            await asyncio.wait({self._look})

    # ---- looking ----

    async def refresh(self, fresh_seconds: float | None = None) -> bool:
        """Looks again unless that was just done. False when the disks take too long to answer."""
        fresh_seconds = FRESH_SECONDS if fresh_seconds is None else fresh_seconds
        if not self.is_used or time.monotonic() - self._looked_at < fresh_seconds:
            return True
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_again())
        done, _ = await asyncio.wait({self._look}, timeout=PATIENCE_SECONDS)
        return bool(done)

    async def look_for(self, name: ModelName) -> None:
        """A disk may have been plugged in a moment ago: looks again for a name nobody knows."""
        if self._own.find(name) is None and not self.knows(name):
            await self.refresh(UNKNOWN_FRESH_SECONDS)

    async def _look_again(self) -> None:
        try:
            await asyncio.to_thread(self._read)
        except Exception:  # a folder of somebody else must not take the list away
            log.exception("looking through other programs' folders failed")
        self._looked_at = time.monotonic()

    def _read(self) -> None:
        places = plan_places(self._folders, is_auto=self._is_auto, own=self._own.root)
        catalogue = read_catalogue(places, self._own)
        by_id: dict[str, FoundFile] = {}
        for _, file in catalogue.files:
            by_id[file.identity.provisional_id] = file
            if digest := self.ledger.digest_of(file.identity):
                by_id[digest] = file
        self._catalogue, self._by_id = catalogue, by_id

    # ---- reading ----

    def find(self, name: ModelName) -> ForeignModel | None:
        return self._catalogue.models.get(name.full.casefold())

    def knows(self, name: ModelName) -> bool:
        """Whether `resolve` has more to say than that there is no such model."""
        key = name.full.casefold()
        return key in self._catalogue.models or key in self._catalogue.loose_projectors

    def models(self) -> list[ResolvedModel]:
        """All that can be read and whose name our own shelf does not use."""
        own = {name.full.casefold() for name in self._own.names()}
        found: list[ResolvedModel] = []
        for key, model in self._catalogue.models.items():
            try:
                if key not in own:
                    found.append(resolved(model, self._catalogue, self.ledger))
            except DaemonError:
                continue
        return found

    def resolve(self, name: ModelName) -> ResolvedModel:
        """Raises NotFound, also when the disk is gone; NotYet for a projector."""
        model = self.find(name)
        if model is None:
            if file := self._catalogue.loose_projectors.get(name.full.casefold()):
                raise NotYet(f"{file.path.name} is a projector, which is no model by itself")
            raise NotFound(f"model '{name.short}' not found")
        if not (model.file.path if model.file else model.place.root).exists():
            raise NotFound(
                f"model '{name.short}' was in {model.place.root}, which is not there now"
            )
        return resolved(model, self._catalogue, self.ledger)

    def blob_path(self, digest: str) -> pathlib.Path:
        """The file with this content: our own, else another program's; it may be missing.

        `digest` is hex, and may be a provisional one.
        """
        own = self._own.blobs.path(digest)
        if own.is_file():
            return own
        if file := self._by_id.get(digest):
            return file.path
        stores = self._catalogue.stores.values()
        return next((s.blobs.path(digest) for s in stores if s.blobs.has(digest)), own)

    def sources(self) -> set[str]:
        """Hex digests, provisional ones too, of all content that the last look found."""
        return set(self._by_id) | stored_sources(self._catalogue)

    # ---- digests ----

    async def identified(self, model: ResolvedModel) -> ResolvedModel:
        """The same model with its files' true digests, read through now where that never was done.

        Raises NotYet for a split GGUF, Invalid when a file changes meanwhile, NotFound.
        """
        foreign = self.find(model.name)
        if foreign is None or foreign.file is None or self._own.find(model.name) is not None:
            return model
        if foreign.is_split:
            name = foreign.file.path.name
            raise NotYet(
                f"{name} is one part of a split GGUF: hearth import it, and all are merged"
            )
        names = {file.path: await self._digest(file) for file in foreign.files}
        by_provisional = {f.identity.provisional_id: names[f.path] for f in foreign.files}
        layers = tuple(
            msgspec.structs.replace(
                layer, digest=f"sha256:{by_provisional.get(layer.digest[7:], layer.digest[7:])}"
            )
            for layer in model.manifest.layers
        )
        return msgspec.structs.replace(
            model,
            manifest=Manifest(config=model.manifest.config, layers=layers),
            weights=_blob(foreign.file, names),
            projectors=tuple(_blob(file, names) for file in foreign.projectors),
        )

    async def _digest(self, file: FoundFile) -> str:
        if digest := self.ledger.digest_of(file.identity):
            return digest
        key = file.identity.provisional_id
        if key not in self._hashing:
            task = asyncio.create_task(asyncio.to_thread(self._hash, file))
            self._hashing[key] = task
            task.add_done_callback(lambda _: self._hashing.pop(key, None))
        digest = await asyncio.shield(self._hashing[key])
        self._by_id[digest] = file
        return digest

    def _hash(self, file: FoundFile) -> str:
        found = hashlib.sha256()
        try:
            with file.path.open("rb", buffering=0) as opened:
                while chunk := opened.read(_CHUNK_BYTES):
                    if self._is_closing.is_set():
                        raise Cancelled("the daemon is stopping")
                    found.update(chunk)
            if identity_of(file.path) != file.identity:
                raise Invalid(f"{file.path.name} changed since it was found; ask again")
        except OSError as error:
            raise NotFound(f"{file.path.name} cannot be read: {error.strerror}") from error
        self.ledger.remember(file.identity, found.hexdigest(), file.path)
        return found.hexdigest()

    # ---- rights ----

    async def adopt(self, root: pathlib.Path) -> None:
        """Marks one of the places: from then on `rm` deletes from it. Raises NotFound, NotYet."""
        place = await asyncio.to_thread(self._place, root)
        if place is None:
            raise NotFound(
                f"{root} is none of the folders that this daemon reads; name it in HEARTH_FOREIGN"
            )
        if place.kind is Kind.CACHE:
            raise NotYet(f"{root} is the cache of another program, whose links only it can remove")
        text = Marker.ADOPTED.value.encode()
        await asyncio.to_thread(
            write_durably, place.root / MARKER_FILE, text, temporary_folder=place.root
        )
        self._looked_at = float("-inf")
        await self.refresh()

    def _place(self, root: pathlib.Path) -> Place | None:
        wanted = root.resolve()
        roots = (wanted, wanted / "models")
        return next((place for place in self._catalogue.places if place.root in roots), None)

    async def delete(self, name: ModelName) -> None:
        """Raises NotFound, or StoreReadOnly naming the way out."""
        model = self.find(name)
        if model is None:
            raise NotFound(f"model '{name.short}' not found")
        root = model.place.root
        if await asyncio.to_thread(read_marker, root) is None:
            raise StoreReadOnly(
                f"model '{name.short}' is in {root}, which belongs to another program; "
                f"`hearth adopt {root}` lets `rm` delete from it"
            )
        if model.stored_name is not None:
            await self._catalogue.stores[root].delete(model.stored_name)
        else:
            await asyncio.to_thread(_remove, model)
        self._looked_at = float("-inf")
        await self.refresh()


def _blob(file: FoundFile, digests: dict[pathlib.Path, str]) -> BlobFile:
    return BlobFile(digests[file.path], file.path, file.identity.size)


def _remove(model: ForeignModel) -> None:
    """The model's own files; a projector may serve the models beside it and stays."""
    own = [file for file in model.files if file not in model.projectors]
    for file in own:
        file.path.unlink(missing_ok=True)
    fsync_folder(own[0].path.parent)
