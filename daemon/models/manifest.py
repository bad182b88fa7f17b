"""Manifests, image configs and layers: the JSON of the store, to the byte (contract.md §5).

Writing is canonical, because digests are taken over these bytes. Reading is lenient: unknown keys,
missing layers or an absent config are no reason to lose a model. Touches no disk.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, cast

import msgspec

from daemon.errors import Invalid

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_PREFIX = "application/vnd.ollama.image."

MODEL = _LAYER_PREFIX + "model"
PROJECTOR = _LAYER_PREFIX + "projector"
ADAPTER = _LAYER_PREFIX + "adapter"
DRAFT = _LAYER_PREFIX + "draft"
TEMPLATE = _LAYER_PREFIX + "template"
PROMPT = _LAYER_PREFIX + "prompt"  # the old name of TEMPLATE
SYSTEM = _LAYER_PREFIX + "system"
PARAMETERS = _LAYER_PREFIX + "params"
MESSAGES = _LAYER_PREFIX + "messages"
LICENSE = _LAYER_PREFIX + "license"
TENSOR = _LAYER_PREFIX + "tensor"  # any of these makes the model one of safetensors
JSON = _LAYER_PREFIX + "json"

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_MENTION = re.compile(rb"sha256[:-]([0-9a-fA-F]{64})")


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One blob of a model. `size` is bytes; `source` ("from") is what it was taken over from."""

    media_type: str = ""
    digest: str = ""
    size: int = 0
    source: str = ""
    name: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    config: Layer = Layer()
    layers: tuple[Layer, ...] = ()

    def of_type(self, media_type: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.media_type == media_type)

    @property
    def total_bytes(self) -> int:
        """What the manifest says its layers and config take; they may be shared with others."""
        return sum(max(0, layer.size) for layer in (*self.layers, self.config))

    @property
    def digests(self) -> frozenset[str]:
        """Hex digests of all well-formed references, config included."""
        named = (layer.digest for layer in (*self.layers, self.config))
        return frozenset(match[1].lower() for text in named if (match := _DIGEST.fullmatch(text)))


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What lists show of a model without opening it. Field order is the order on disk."""

    model_format: str = ""
    model_family: str = ""
    model_families: tuple[str, ...] | None = None
    model_type: str = ""
    file_type: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    remote_model: str = ""
    capabilities: tuple[str, ...] = ()
    context_length: int = 0
    embedding_length: int = 0
    base_name: str = ""


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the `messages` layer, as it lies on disk and as `show` prints it."""

    role: str
    content: str = ""


class _LooseLayer(msgspec.Struct):
    media_type: str | None = msgspec.field(name="mediaType", default=None)
    digest: str | None = None
    size: int | None = None
    source: str | None = msgspec.field(name="from", default=None)
    name: str | None = None


class _LooseManifest(msgspec.Struct):
    config: _LooseLayer | None = None
    layers: list[_LooseLayer] | None = None


_CONFIG_ALWAYS = ("model_format", "model_family", "model_families", "model_type", "file_type")


def layer_of(data: bytes, media_type: str) -> Layer:
    """The layer that a blob with this content makes."""
    digest = hashlib.sha256(data).hexdigest()
    return Layer(media_type=media_type, digest=f"sha256:{digest}", size=len(data))


def parse_digest(text: str) -> str:
    """Lowercase hex of `sha256:<hex>` or `sha256-<hex>`. Raises Invalid."""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise Invalid("invalid digest format")
    return match[1].lower()


def mentioned_digests(data: bytes) -> set[str]:
    """Hex of every digest anywhere in `data`, whether or not it is a manifest that can be read."""
    return {match[1].decode().lower() for match in _MENTION.finditer(data)}


def go_json(value: object) -> bytes:
    """Compact JSON as Go's encoder writes it, so that equal content has equal digests."""
    data = msgspec.json.encode(value)
    # These bytes can only stand inside strings, where an escape means the same.
    for plain, escaped in _ESCAPES:
        data = data.replace(plain, escaped)
    return data


_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest made here: fixed key order, one newline at the end."""
    return (
        go_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": _layer_json(manifest.config),
                "layers": [_layer_json(layer) for layer in manifest.layers],
            }
        )
        + b"\n"
    )


def _layer_json(layer: Layer) -> dict[str, str | int]:
    fields: dict[str, str | int] = {
        "mediaType": layer.media_type,
        "digest": layer.digest,
        "size": layer.size,
    }
    if layer.source:
        fields["from"] = layer.source
    if layer.name:
        fields["name"] = layer.name
    return fields


def decode_manifest(data: bytes) -> Manifest:
    """Lenient: absent or null config and layers are empty. Raises Invalid when it is no manifest."""
    try:
        loose = msgspec.json.decode(data, type=_LooseManifest)
    except msgspec.MsgspecError as error:
        raise Invalid(f"unreadable manifest: {error}") from error
    layers = tuple(_strict_layer(layer) for layer in loose.layers or ())
    return Manifest(config=_strict_layer(loose.config or _LooseLayer()), layers=layers)


def _strict_layer(loose: _LooseLayer) -> Layer:
    return Layer(
        media_type=loose.media_type or "",
        digest=loose.digest or "",
        size=max(0, loose.size or 0),
        source=loose.source or "",
        name=loose.name or "",
    )


def manifest_digest(data: bytes) -> str:
    """Hex over the whole file: what lists show and what registries compare."""
    return hashlib.sha256(data).hexdigest()


def encode_config(config: ImageConfig) -> bytes:
    """The config blob: five keys always, the others when set, then the two constants; newline."""
    fields: dict[str, Any] = {}
    for name in ImageConfig.__struct_fields__:
        value = getattr(config, name)
        if name in _CONFIG_ALWAYS or value:
            fields[name] = value
    return go_json(fields | {"architecture": "amd64", "os": "linux"}) + b"\n"


def decode_config(data: bytes) -> ImageConfig:
    """Lenient, key by key: a value of a wrong type counts as absent. Never raises."""
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError:
        return ImageConfig()
    kept: dict[str, Any] = {}
    for field in msgspec.structs.fields(ImageConfig):
        try:
            kept[field.name] = msgspec.convert(found.get(field.name), field.type)
        except msgspec.ValidationError:
            continue
    return ImageConfig(**kept)


def plain_number(value: object) -> object:
    """Whole floats as integers (1.0 → 1), recursively, as Go writes its float64 values."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    if isinstance(value, list):
        return [plain_number(item) for item in cast("list[object]", value)]
    return value


def encode_parameters(parameters: dict[str, Any]) -> bytes:
    """The `params` layer: sorted keys, newline."""
    plain = {key: plain_number(parameters[key]) for key in sorted(parameters)}
    return go_json(plain) + b"\n"


def encode_messages(messages: tuple[StoredMessage, ...]) -> bytes:
    """The `messages` layer: a JSON array, newline."""
    return go_json(messages) + b"\n"


def human_parameter_count(count: int) -> str:
    """`model_type` of the config: 7B, 1.1B, 137.02M, 24K, 512 (contract.md §5.2)."""
    if count >= 10**9:
        return _trimmed(count / 10**9, 1) + "B"
    if count >= 10**6:
        return _trimmed(count / 10**6, 2) + "M"
    if count >= 10**3:
        return f"{count / 1000:.0f}K"
    return str(count)


def _trimmed(number: float, places: int) -> str:
    """Go prints the places only when the number is not whole before rounding."""
    return str(int(number)) if number.is_integer() else f"{number:.{places}f}"
