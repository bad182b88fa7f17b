"""One look over all places: which models are there and under which names. Blocking; keeps nothing.

A file in a folder is a model of its own; a projector belongs to the models beside it that it fits; the
parts of a split GGUF are one model. A store's models keep the names they have there.
"""

from __future__ import annotations

import pathlib

import msgspec

from daemon.errors import DaemonError
from daemon.models import manifest as media
from daemon.models.foreign.beside import projectors_for
from daemon.models.foreign.ledger import Ledger
from daemon.models.foreign.naming import name_for, unused_name
from daemon.models.foreign.places import Kind, Place
from daemon.models.foreign.scan import FoundFile, scan
from daemon.models.manifest import ImageConfig, Layer, Manifest, encode_manifest, manifest_digest
from daemon.models.marker import read_marker
from daemon.models.name import ModelName
from daemon.models.resolved import BlobFile, ResolvedModel
from daemon.models.store import Store


class ForeignModel(msgspec.Struct, frozen=True, kw_only=True):
    """In a store: its `stored_name` there. Else `file`, with what belongs to it."""

    name: ModelName
    place: Place
    stored_name: ModelName | None = None
    file: FoundFile | None = None
    parts: tuple[FoundFile, ...] = ()
    projectors: tuple[FoundFile, ...] = ()

    @property
    def files(self) -> tuple[FoundFile, ...]:
        own = (self.file,) if self.file else ()
        return own + self.parts + self.projectors

    @property
    def is_split(self) -> bool:
        return bool(self.file and self.file.role == "part")


class Catalogue(msgspec.Struct):
    """`models` by full name in lower case; `stores` by the root of their place."""

    places: list[Place] = []
    models: dict[str, ForeignModel] = {}
    loose_projectors: dict[str, FoundFile] = {}
    files: list[tuple[Place, FoundFile]] = []
    stores: dict[pathlib.Path, Store] = {}


def read_catalogue(places: list[Place], own: Store) -> Catalogue:
    """`own` has its names and manifests first: what it has just so is not shown twice."""
    catalogue = Catalogue(places=places)
    taken = {name.full.casefold() for name in own.names()}
    own_digests = {(stored.name.full, stored.digest) for stored in own.manifests()}
    for place in places:
        if place.kind is Kind.STORE:
            store = Store(place.root, read_marker(place.root))
            catalogue.stores[place.root] = store
            for stored in store.manifests():
                if (stored.name.full, stored.digest) not in own_digests:
                    name = unused_name(stored.name, taken | catalogue.models.keys())
                    model = ForeignModel(name=name, place=place, stored_name=stored.name)
                    catalogue.models[name.full.casefold()] = model
        else:
            _add_files(catalogue, place, taken)
    return catalogue


def _add_files(catalogue: Catalogue, place: Place, taken: set[str]) -> None:
    files = scan(place.root)
    catalogue.files += [(place, file) for file in files]
    parts: dict[str, list[FoundFile]] = {}
    for file in files:
        if file.role == "part":
            parts.setdefault("/".join((*file.folder, _whole(file))), []).append(file)
    for file in files:
        if file.role == "part" and parts["/".join((*file.folder, _whole(file)))][0] is not file:
            continue
        name = unused_name(name_for(file.relative), taken | catalogue.models.keys())
        key = name.full.casefold()
        if file.role == "projector":
            catalogue.loose_projectors.setdefault(key, file)
            continue
        rest = parts["/".join((*file.folder, _whole(file)))][1:] if file.role == "part" else []
        catalogue.models[key] = ForeignModel(
            name=name,
            place=place,
            file=file,
            parts=tuple(rest),
            projectors=projectors_for(file, files),
        )


def _whole(file: FoundFile) -> str:
    """The name that all parts of a split GGUF share."""
    return file.relative[-1].rsplit("-of-", 1)[0].rsplit("-", 1)[0]


def resolved(model: ForeignModel, catalogue: Catalogue, ledger: Ledger) -> ResolvedModel:
    """As the own store gives it. Weights that were never hashed have a provisional digest.

    Raises NotFound, Internal.
    """
    if model.stored_name is not None:
        found = catalogue.stores[model.place.root].resolve(model.stored_name)
        return msgspec.structs.replace(found, name=model.name)
    assert model.file is not None
    provisional = Manifest(layers=tuple(_layers(model, None)))
    files = [_blob(file, ledger) for file in model.files]
    return ResolvedModel(
        name=model.name,
        digest=manifest_digest(encode_manifest(provisional)),
        modified_seconds=model.file.identity.modified_ns / 1e9,
        manifest=Manifest(layers=tuple(_layers(model, ledger))),
        config=ImageConfig(model_format="gguf"),
        weights=files[0],
        projectors=tuple(files[1 + len(model.parts) :]),
    )


def _layers(model: ForeignModel, ledger: Ledger | None) -> list[Layer]:
    projectors = {file.path for file in model.projectors}
    return [
        Layer(
            media_type=media.PROJECTOR if file.path in projectors else media.MODEL,
            digest=f"sha256:{_digest(file, ledger)}",
            size=file.identity.size,
            source=file.path.name,
        )
        for file in model.files
    ]


def _digest(file: FoundFile, ledger: Ledger | None) -> str:
    known = ledger.digest_of(file.identity) if ledger else ""
    return known or file.identity.provisional_id


def _blob(file: FoundFile, ledger: Ledger) -> BlobFile:
    return BlobFile(_digest(file, ledger), file.path, file.identity.size)


def stored_sources(catalogue: Catalogue) -> set[str]:
    """Hex digests that the manifests of foreign stores mention."""
    found: set[str] = set()
    for store in catalogue.stores.values():
        try:
            found |= {digest for stored in store.manifests() for digest in stored.manifest.digests}
        except DaemonError:
            continue
    return found
