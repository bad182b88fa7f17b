"""A model as requests see it: its manifest with every small layer read and checked."""

from __future__ import annotations

import pathlib
from typing import Any, TypeVar

import msgspec

from daemon.errors import Internal, LoadFailed, NotYet
from daemon.models import manifest as media
from daemon.models.blobs import Blobs
from daemon.models.manifest import ImageConfig, Layer, Manifest, StoredMessage, parse_digest
from daemon.models.name import ModelName

# Text layers are read into memory; what is larger was not written by anything of this field.
MAX_TEXT_BYTES = 16 << 20
ONLY_ONE_ADAPTER = "only one adapter is currently supported"
_T = TypeVar("_T")


class BlobFile(msgspec.Struct, frozen=True):
    """A blob that a layer names. It may be missing; `size` is what the manifest says."""

    digest: str
    path: pathlib.Path
    size: int


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the shelf knows of one name. `digest` is hex over the manifest file.

    `template` is the Go template of the manifest ("" without one; the GGUF's own is in its
    inspection). `parameters` are as stored: JSON values, not checked against any option table.
    """

    name: ModelName
    digest: str
    modified_seconds: float
    manifest: Manifest
    config: ImageConfig
    weights: BlobFile | None = None
    adapters: tuple[BlobFile, ...] = ()
    projectors: tuple[BlobFile, ...] = ()
    draft: BlobFile | None = None
    parameters: dict[str, Any] = {}
    system: str = ""
    template: str = ""
    messages: tuple[StoredMessage, ...] = ()
    licenses: tuple[str, ...] = ()

    @property
    def model_digest(self) -> str:
        """Hex of the weights' blob, "" when the manifest names none."""
        return self.weights.digest if self.weights else ""

    @property
    def parent_model(self) -> str:
        layers = self.manifest.of_type(media.MODEL)
        return layers[0].source if layers else ""

    def require_weights(self) -> BlobFile:
        """The weights, there and of the right size. Raises LoadFailed naming what is wrong."""
        if self.weights is None:
            raise LoadFailed(f"model '{self.name.short}' has no GGUF weights")
        return self._required(self.weights)

    def require_adapters(self) -> tuple[BlobFile, ...]:
        """At most one, there and of the right size. Raises LoadFailed, NotYet."""
        if len(self.adapters) > 1:
            raise NotYet(
                f"model '{self.name.short}' has {len(self.adapters)} adapters: {ONLY_ONE_ADAPTER}"
            )
        return tuple(self._required(adapter) for adapter in self.adapters)

    def require_projector(self) -> BlobFile:
        """The first projector, which is the one that is used. Raises LoadFailed."""
        return self._required(self.projectors[0])

    def _required(self, blob: BlobFile) -> BlobFile:
        damaged = f"model '{self.name.short}' is damaged: blob sha256:{blob.digest}"
        try:
            size = blob.path.stat().st_size
        except OSError:
            raise LoadFailed(f"{damaged} is missing") from None
        if blob.size and size != blob.size:
            raise LoadFailed(f"{damaged} has {size} bytes and not {blob.size}")
        return blob


def read_model(
    name: ModelName, digest: str, modified_seconds: float, manifest: Manifest, blobs: Blobs
) -> ResolvedModel:
    """Reads the text layers. Raises Internal naming the layer that is missing or no such text."""
    reader = _LayerReader(name, manifest, blobs)
    weights, drafts = reader.files(media.MODEL), reader.files(media.DRAFT)
    return ResolvedModel(
        name=name,
        digest=digest,
        modified_seconds=modified_seconds,
        manifest=manifest,
        config=read_config(manifest, blobs),
        weights=weights[0] if weights else None,
        adapters=reader.files(media.ADAPTER),
        projectors=reader.files(media.PROJECTOR),
        draft=drafts[0] if drafts else None,
        parameters=reader.json(media.PARAMETERS, dict[str, Any]) or {},
        system=reader.last_text(media.SYSTEM),
        template=reader.last_text(media.TEMPLATE) or reader.last_text(media.PROMPT),
        messages=reader.json(media.MESSAGES, tuple[StoredMessage, ...]) or (),
        licenses=reader.texts(media.LICENSE),
    )


def read_config(manifest: Manifest, blobs: Blobs) -> ImageConfig:
    """Lenient: an absent or unreadable config is an empty one, as lists must not fail."""
    if not manifest.config.digest:
        return ImageConfig()
    try:
        with blobs.path(parse_digest(manifest.config.digest)).open("rb") as file:
            return media.decode_config(file.read(MAX_TEXT_BYTES))
    except Exception:  # noqa: BLE001 - bad digest, missing file, no rights: all the same here
        return ImageConfig()


class _LayerReader:
    def __init__(self, name: ModelName, manifest: Manifest, blobs: Blobs) -> None:
        self._name, self._manifest, self._blobs = name, manifest, blobs

    def files(self, media_type: str) -> tuple[BlobFile, ...]:
        return tuple(self._file(layer) for layer in self._manifest.of_type(media_type))

    def _file(self, layer: Layer) -> BlobFile:
        digest = parse_digest(layer.digest)
        return BlobFile(digest, self._blobs.path(digest), layer.size)

    def texts(self, media_type: str) -> tuple[str, ...]:
        found = (self._bytes(layer) for layer in self._manifest.of_type(media_type))
        return tuple(data.decode("utf-8", errors="replace") for data in found)

    def last_text(self, media_type: str) -> str:
        return (self.texts(media_type) or ("",))[-1]

    def json(self, media_type: str, kind: type[_T]) -> _T | None:
        layers = self._manifest.of_type(media_type)
        if not layers:
            return None
        try:
            return msgspec.json.decode(self._bytes(layers[-1]), type=kind)
        except msgspec.MsgspecError as error:
            raise self._damaged(layers[-1], f"is not what it should be: {error}") from error

    def _bytes(self, layer: Layer) -> bytes:
        try:
            with self._file(layer).path.open("rb") as file:
                data = file.read(MAX_TEXT_BYTES + 1)
        except OSError:
            raise self._damaged(layer, "is missing") from None
        if len(data) > MAX_TEXT_BYTES:
            raise self._damaged(layer, f"is larger than {MAX_TEXT_BYTES} bytes")
        return data

    def _damaged(self, layer: Layer, what: str) -> Internal:
        return Internal(f"model '{self._name.short}' is damaged: blob {layer.digest} {what}")
