"""The one field of EXIF data that matters here, found without reading any other."""

from __future__ import annotations

import struct

_TAG = 0x0112
_SHORT = 3
# Cameras write a dozen or two.
_MOST_FIELDS = 512


def orientation_of(data: bytes, begin: int, end: int) -> int:
    """1 to 8 as `data[begin:end]` says; 1 where it says nothing, or nothing that can be understood."""
    block = memoryview(data)[begin : min(end, len(data))]
    if bytes(block[:6]) == b"Exif\0\0":
        block = block[6:]
    order = {b"II": "<", b"MM": ">"}.get(bytes(block[:2]))
    if order is None:
        return 1
    try:
        return _find(block, order)
    except struct.error:
        return 1


def _find(block: memoryview, order: str) -> int:
    (place,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, place)
    for number in range(min(count, _MOST_FIELDS)):
        tag, kind = struct.unpack_from(f"{order}HH", block, place + 2 + 12 * number)
        if tag == _TAG and kind == _SHORT:
            (value,) = struct.unpack_from(f"{order}H", block, place + 10 + 12 * number)
            return value if 1 <= value <= 8 else 1
    return 1
