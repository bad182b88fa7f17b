"""What is where on the disks: places, models, what is shared, what is there twice, artifacts.

Blocking and read-only. Sizes are bytes of content; a file that has several names (hard links) counts
once. Content of other programs that was never read through cannot be compared and is counted apart.
"""

from __future__ import annotations

import datetime
import pathlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from daemon.models.artifact_collection import UNREACHABLE_FILE, tree_bytes
from daemon.models.blobs import Blobs
from daemon.models.foreign.catalogue import Catalogue
from daemon.models.foreign.ledger import Ledger
from daemon.models.resolved import ResolvedModel
from daemon.models.store import Store, StoredManifest

_File = tuple[pathlib.Path, int, tuple[int, int]]


class PlaceUse(msgspec.Struct, frozen=True, kw_only=True):
    """`kind`: own, store, huggingface or folder. `unread`: files whose content was never compared."""

    root: str
    kind: str
    models: int
    files: int
    size: int
    free: int
    unread: int = 0


class ModelUse(msgspec.Struct, frozen=True, kw_only=True):
    """A model of our own store. `shared`: bytes of its content that other names use too."""

    name: str
    size: int
    shared: int


class Duplicate(msgspec.Struct, frozen=True, kw_only=True):
    """One content that lies on the disks more than once; `wasted` is all but one copy."""

    digest: str
    size: int
    wasted: int
    paths: tuple[str, ...]


class ArtifactUse(msgspec.Struct, frozen=True, kw_only=True):
    """`unreachable_since`: none of the places has had its source since then."""

    source: str
    target: str
    size: int
    models: tuple[str, ...]
    unreachable_since: datetime.datetime | None = None


class DiskUse(msgspec.Struct, frozen=True, kw_only=True):
    """`unmentioned`: bytes of blobs that no model uses; `partial`: of downloads and uploads."""

    places: tuple[PlaceUse, ...]
    models: tuple[ModelUse, ...]
    duplicates: tuple[Duplicate, ...]
    artifacts: tuple[ArtifactUse, ...]
    unmentioned: int
    partial: int


def measure(
    store: Store,
    catalogue: Catalogue,
    ledger: Ledger,
    others: list[ResolvedModel],
    artifacts: pathlib.Path,
) -> DiskUse:
    """`others` are the foreign models as the last look found them."""
    manifests = store.manifests()
    own = list(_blobs(store.blobs))
    contents: defaultdict[str, list[_File]] = defaultdict(list)
    for digest, file in [*own, *_foreign(catalogue, ledger)]:
        contents[digest].append(file)
    mentioned = {digest for stored in manifests for digest in stored.manifest.digests}
    names = defaultdict[str, list[str]](list)
    for stored in manifests:
        for digest in sorted(stored.manifest.digests):
            names[digest].append(stored.name.short)
    for model in others:
        for digest in (model.model_digest, *(file.digest for file in model.projectors)):
            names[digest].append(model.name.short)
    return DiskUse(
        places=(_own_place(store, manifests, own), *_places(catalogue, ledger)),
        models=tuple(_models(manifests)),
        duplicates=tuple(_duplicates(contents)),
        artifacts=tuple(_artifacts(artifacts, names)),
        unmentioned=sum(file[1] for digest, file in own if digest and digest not in mentioned),
        partial=sum(file[1] for digest, file in own if not digest),
    )


def _file(path: pathlib.Path) -> _File:
    status = path.stat()
    return path, status.st_size, (status.st_dev, status.st_ino)


def _blobs(blobs: Blobs) -> Iterable[tuple[str, _File]]:
    """Each blob by its hex digest; temporary files have none."""
    for path, digest in blobs.files():
        try:
            yield digest or "", _file(path)
        except OSError:
            continue


def _foreign(catalogue: Catalogue, ledger: Ledger) -> Iterable[tuple[str, _File]]:
    """What of other programs' content has a digest that is known."""
    for store in catalogue.stores.values():
        yield from ((digest, file) for digest, file in _blobs(store.blobs) if digest)
    for _, found in catalogue.files:
        if digest := ledger.digest_of(found.identity):
            identity = found.identity
            yield digest, (found.path, identity.size, (identity.device, identity.inode))


def _size(files: Iterable[_File]) -> int:
    return sum({inode: size for _, size, inode in files}.values())


def _own_place(
    store: Store, manifests: list[StoredManifest], own: list[tuple[str, _File]]
) -> PlaceUse:
    return PlaceUse(
        root=str(store.root),
        kind="own" if store.is_writable else "store",
        models=len(manifests),
        files=len(own),
        size=_size(file for _, file in own),
        free=shutil.disk_usage(store.root).free if store.root.exists() else 0,
    )


def _places(catalogue: Catalogue, ledger: Ledger) -> Iterable[PlaceUse]:
    models = Counter(model.place.root for model in catalogue.models.values())
    for place in catalogue.places:
        store = catalogue.stores.get(place.root)
        if store is not None:
            files = [file for _, file in _blobs(store.blobs)]
            unread = 0
        else:
            found = [file for owner, file in catalogue.files if owner == place]
            files = [
                (f.path, f.identity.size, (f.identity.device, f.identity.inode)) for f in found
            ]
            unread = sum(not ledger.digest_of(file.identity) for file in found)
        yield PlaceUse(
            root=str(place.root),
            kind=place.kind.value,
            models=models[place.root],
            files=len(files),
            size=_size(files),
            free=shutil.disk_usage(place.root).free if place.root.exists() else 0,
            unread=unread,
        )


def _models(manifests: list[StoredManifest]) -> Iterable[ModelUse]:
    used = Counter(digest for stored in manifests for digest in stored.manifest.digests)
    for stored in manifests:
        layers = {
            layer.digest[-64:].lower(): layer.size
            for layer in (*stored.manifest.layers, stored.manifest.config)
        }
        yield ModelUse(
            name=stored.name.short,
            size=sum(layers.values()),
            shared=sum(size for digest, size in layers.items() if used[digest] > 1),
        )


def _duplicates(contents: dict[str, list[_File]]) -> Iterable[Duplicate]:
    for digest, files in sorted(contents.items()):
        copies = len({inode for _, _, inode in files})
        if digest and copies > 1:
            size = files[0][1]
            paths = tuple(sorted(str(path) for path, _, _ in files))
            yield Duplicate(digest=digest, size=size, wasted=size * (copies - 1), paths=paths)


def _artifacts(artifacts: pathlib.Path, names: dict[str, list[str]]) -> Iterable[ArtifactUse]:
    folders = sorted(artifacts.iterdir()) if artifacts.is_dir() else []
    for folder in folders:
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        note = folder / UNREACHABLE_FILE
        since = note.stat().st_mtime if note.exists() else None
        for variant in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield ArtifactUse(
                source=folder.name,
                target=variant.name,
                size=tree_bytes(variant),
                models=tuple(names.get(folder.name, ())),
                unreachable_since=datetime.datetime.fromtimestamp(since, datetime.UTC)
                if since is not None
                else None,
            )
