"""A model that is being put together: layers and texts before there is a manifest."""

from __future__ import annotations

import msgspec

from converters.inspection import Inspection
from daemon.errors import Invalid, LoadFailed
from daemon.models.create_adapter import weights_layer
from daemon.models.manifest import ImageConfig, Layer, layer_of
from daemon.models.resolved import MAX_TEXT_BYTES


class Draft(msgspec.Struct):
    """`texts` holds the content of new small layers, by media type.

    `made` are blobs (hex) that exist only for it.
    """

    config: ImageConfig
    layers: list[Layer]
    texts: list[tuple[str, bytes]] = []
    inspection: Inspection | None = None
    made: list[str] = []

    def require_inspection(self, what: str) -> Inspection:
        """Of the weights that `what` is for. Raises LoadFailed."""
        if self.inspection is None:
            raise LoadFailed(f"the weights that {what} is for cannot be read")
        return self.inspection

    def replace_weights(self, inspection: Inspection) -> None:
        """Others in their place; where the model came from stays told."""
        old, digest = weights_layer(self.layers), f"sha256:{inspection.digest}"
        new = msgspec.structs.replace(old, digest=digest, size=inspection.size)
        self.layers = [new if layer is old else layer for layer in self.layers]
        self.inspection = inspection

    def replace(self, media_type: str, data: bytes) -> None:
        self.drop(media_type)
        self.add(media_type, data)

    def drop(self, media_type: str) -> None:
        self.layers = [layer for layer in self.layers if layer.media_type != media_type]

    def add(self, media_type: str, data: bytes) -> None:
        """Raises Invalid for what would be too large to be read back."""
        if len(data) > MAX_TEXT_BYTES:
            raise Invalid(f"a text of {len(data)} bytes is over the limit of {MAX_TEXT_BYTES}")
        self.texts.append((media_type, data))
        layer = layer_of(data, media_type)
        if (layer.media_type, layer.digest) not in self._held():
            self.layers.append(layer)

    def _held(self) -> set[tuple[str, str]]:
        return {(layer.media_type, layer.digest) for layer in self.layers}
