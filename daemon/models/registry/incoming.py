"""A stranger's manifest, checked before anything is made of it: counts, sizes, digests. Pure.

Reading what is on our own disk is lenient (`daemon.models.manifest`); this is not.
"""

from __future__ import annotations

import msgspec

from daemon.errors import Invalid, NotYet
from daemon.models import manifest as media
from daemon.models.manifest import Layer, Manifest, parse_digest
from daemon.models.resolved import MAX_TEXT_BYTES, ONLY_ONE_ADAPTER

MAX_LAYERS = 1024
MAX_BLOB_BYTES = 16 << 40
_TEXTS = frozenset(
    {
        media.TEMPLATE, media.PROMPT, media.SYSTEM, media.PARAMETERS, media.MESSAGES,
        media.LICENSE, media.CONFIG_TYPE,
    }
)  # fmt: skip


class _WireLayer(msgspec.Struct):
    digest: str = ""
    size: int = 0
    media_type: str = msgspec.field(name="mediaType", default="")
    source: str | None = msgspec.field(name="from", default=None)
    name: str | None = None


class _WireManifest(msgspec.Struct):
    schema_version: int = msgspec.field(name="schemaVersion", default=2)
    config: _WireLayer | None = None
    layers: list[_WireLayer] | None = None
    manifests: list[msgspec.Raw] | None = None


def check_manifest(data: bytes) -> Manifest:
    """Raises Invalid naming what is absurd, NotYet for what this version cannot hold."""
    try:
        wire = msgspec.json.decode(data, type=_WireManifest)
    except msgspec.MsgspecError as error:
        raise Invalid(f"the registry's manifest is not readable: {error}") from error
    if wire.manifests is not None:
        raise NotYet("the registry's manifest is an index of several, which is not supported")
    if wire.schema_version != 2:
        raise NotYet(f"manifests of schema version {wire.schema_version} are not supported")
    found = wire.layers or []
    if not found:
        raise Invalid("the registry's manifest has no layers")
    if any(layer.media_type == media.TENSOR for layer in found):
        raise NotYet("models of safetensors layers are not supported by this version yet")
    if sum(layer.media_type == media.ADAPTER for layer in found) > 1:
        raise NotYet(f"the model has several adapters, and {ONLY_ONE_ADAPTER}")
    if len(found) > MAX_LAYERS:
        raise Invalid(f"the registry's manifest has {len(found)} layers, over {MAX_LAYERS}")
    layers = tuple(_checked(layer) for layer in found)
    has_config = wire.config is not None and bool(wire.config.digest)
    config = _checked(wire.config) if wire.config and has_config else Layer()
    return Manifest(config=config, layers=layers)


def _checked(layer: _WireLayer) -> Layer:
    try:
        digest = f"sha256:{parse_digest(layer.digest)}"
    except Invalid:
        raise Invalid(f"the registry's manifest names the digest {layer.digest[:80]!r}") from None
    most = MAX_TEXT_BYTES if layer.media_type in _TEXTS else MAX_BLOB_BYTES
    if not 0 <= layer.size <= most:
        raise Invalid(f"the registry's manifest gives {digest} an absurd size: {layer.size} bytes")
    return Layer(
        media_type=layer.media_type,
        digest=digest,
        size=layer.size,
        source=layer.source or "",
        name=layer.name or "",
    )


def blobs_of(manifest: Manifest) -> list[Layer]:
    """Every blob once: layers in order, then the config. Raises Invalid for one with two sizes."""
    found: dict[str, Layer] = {}
    for layer in (*manifest.layers, manifest.config):
        if not layer.digest:
            continue
        known = found.setdefault(layer.digest, layer)
        if known.size != layer.size:
            raise Invalid(f"the registry's manifest gives {layer.digest} two sizes")
    return list(found.values())
