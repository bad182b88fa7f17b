"""Vectors of images seen lately, bounded in bytes. Not thread-safe: its owner locks."""

from __future__ import annotations

from collections import OrderedDict

# For each of an image's `Vectors`: float32, little-endian, [length, width].
ImageVectors = tuple[bytes, ...]


class VectorCache:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[bytes, ImageVectors] = OrderedDict()
        self.held_bytes = 0

    def get(self, digest: bytes) -> ImageVectors | None:
        found = self._kept.get(digest)
        if found is not None:
            self._kept.move_to_end(digest)
        return found

    def put(self, digest: bytes, vectors: ImageVectors) -> None:
        """What was not used for longest goes; what is larger than all room is not kept."""
        size = sum(map(len, vectors))
        if digest in self._kept or size > self._most_bytes:
            return
        while self.held_bytes + size > self._most_bytes:
            _, gone = self._kept.popitem(last=False)
            self.held_bytes -= sum(map(len, gone))
        self._kept[digest] = vectors
        self.held_bytes += size
