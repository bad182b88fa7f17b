"""One array in a file of weights: what it is called, where it lies, how it is shaped."""

from __future__ import annotations

from typing import Literal

import msgspec

ItemType = Literal["uint8", "float16", "bfloat16", "float32"]
# What activations and the scales of codes are computed in.
Number = Literal["float16", "float32"]
NUMBER_BITS: dict[str, int] = {"float16": 16, "bfloat16": 16, "float32": 32}
ITEM_BYTES = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4}


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One array in `weights.bin`: `offset` in bytes, C order, little-endian."""

    name: str
    item: ItemType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        size = ITEM_BYTES[self.item]
        for dimension in self.shape:
            size *= dimension
        return size


class LowRank(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter adds to a matrix's product: up (down x), down [rank, columns], up [rows, rank].

    Both lie in the adapter's own file.
    """

    down: Piece
    up: Piece
