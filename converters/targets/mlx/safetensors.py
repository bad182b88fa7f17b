"""The safetensors container: where each array lies, and the header that says so.

The format allows no gaps, so arrays are put in order of falling item size: each one is aligned to
its items. Source: the format's own description (huggingface/safetensors).
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

ITEM_BYTES = {"U32": 4, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
# The data begins at a multiple of this; the header is filled with spaces.
ALIGNMENT_BYTES = 4096
_LENGTH_BYTES = 8


class Array(msgspec.Struct, frozen=True):
    """One named array; `offset` in bytes from the start of the file, 0 before it is placed."""

    name: str
    item: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        size = ITEM_BYTES[self.item]
        for dimension in self.shape:
            size *= dimension
        return size


def place(arrays: Iterable[Array]) -> tuple[dict[str, Array], bytes]:
    """The arrays with their offsets, by name, and the file's first bytes."""
    ordered = sorted(arrays, key=lambda array: -ITEM_BYTES[array.item])
    begins, end = [], 0
    for array in ordered:
        begins.append(end)
        end += array.nbytes
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    for array, begin in zip(ordered, begins, strict=True):
        span = [begin, begin + array.nbytes]
        entries[array.name] = {"dtype": array.item, "shape": array.shape, "data_offsets": span}
    header = _framed(json.dumps(entries, separators=(",", ":")).encode())
    placed = (
        replace(array, offset=len(header) + begin)
        for array, begin in zip(ordered, begins, strict=True)
    )
    return {array.name: array for array in placed}, header


def _framed(text: bytes) -> bytes:
    length = -(-(_LENGTH_BYTES + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES - _LENGTH_BYTES
    return length.to_bytes(_LENGTH_BYTES, "little") + text.ljust(length)
