"""Where an image lies in a prompt, at the level of ids. Standard library and msgspec only."""

from __future__ import annotations

import msgspec

_ID_BYTES = 7


class ImageSpan(msgspec.Struct, frozen=True, kw_only=True):
    """`length` positions from `start` on whose vectors an image gives, not the embedding table.

    `embeddings` are float32, little-endian, [length, width]. The first E numbers are the position's own;
    what stands behind them is added to the stream after the first blocks, E numbers for each
    (DeepStack). For models that rotate by sections `rows` × `columns` = `length` is the grid that the
    positions lie in, in raster order; without sections, or with 0, they are counted on like ids.
    `is_bidirectional`: the positions of the span see each other, those behind them too.
    """

    start: int
    length: int
    embeddings: bytes
    rows: int = 0
    columns: int = 0
    is_bidirectional: bool = False


def image_id(digest: bytes) -> int:
    """What stands in `prompt_ids` at every position of an image, below 0. `digest`: of its vectors' source.

    56 bits of a SHA-256: prefixes are shared by comparing ids, so other images must give other ones.
    """
    return -1 - int.from_bytes(digest[:_ID_BYTES], "little")
