"""Format, size and orientation of an image file, read from its first bytes. Standard library only.

Hand-made, because an image library does much before it tells a size: it unpacks texts and colour profiles
and makes room for whole pictures. This reads fields and skips blocks; it never allocates by what it reads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import msgspec

from backends.types import EngineError
from backends.vision.orientation import orientation_of

# Nobody's picture has more in front of its pixels; what a library does with it may take squares of time.
MAX_METADATA_BYTES = 16 << 20
# An animation has a block for each picture, a profile one for each 64 KiB. Walking takes milliseconds then.
_MOST_BLOCKS = 2000
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GIFS = (b"GIF87a", b"GIF89a")
_MARKERS_OF_SIZE = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Without a length; 0 and 0xFF are filling.
_MARKERS_ALONE = frozenset((0x00, 0x01, 0xFF, *range(0xD0, 0xD9)))
_SCAN = 0xDA
_END = 0xD9
_APP1 = 0xE1
# Quarter turns swap the sides.
_FIRST_TURNED = 5


class ImageHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Of the first picture in the file. `orientation` 1 to 8 as EXIF has it: how its pixels are to be turned."""

    format: str
    stored_width: int
    stored_height: int
    orientation: int = 1

    @property
    def is_turned(self) -> bool:
        return self.orientation >= _FIRST_TURNED

    @property
    def width(self) -> int:
        """As it is to be seen."""
        return self.stored_height if self.is_turned else self.stored_width

    @property
    def height(self) -> int:
        return self.stored_width if self.is_turned else self.stored_height


def read_header(data: bytes) -> ImageHeader:
    """PNG, JPEG, WebP, GIF and BMP. Raises EngineError("invalid") for everything else."""
    read = _reader(data)
    if read is None:
        raise EngineError("invalid", "it is no PNG, JPEG, WebP, GIF or BMP file")
    try:
        return read(data)
    except (struct.error, IndexError, ValueError) as error:
        raise EngineError("invalid", "its header is cut off or broken") from error


def _reader(data: bytes) -> Callable[[bytes], ImageHeader] | None:
    if data.startswith(_PNG):
        return _png
    if data.startswith(_JPEG):
        return _jpeg
    if data.startswith(_GIFS):
        return _gif
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp
    return _bmp if data.startswith(b"BM") else None


def _png(data: bytes) -> ImageHeader:
    """NOTE: an EXIF block behind the pixels is not looked at."""
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if kind != b"IHDR" or length != 13:
        raise EngineError("invalid", "its header is broken")
    place, orientation = 33, 0
    for _ in _blocks():
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            break
        if kind == b"eXIf" and not orientation:
            orientation = orientation_of(data, place + 8, place + 8 + length)
        place += 12 + length
        _check_place(place)
    return ImageHeader(
        format="PNG", stored_width=width, stored_height=height, orientation=orientation or 1
    )


def _blocks() -> Iterator[int]:
    """For a walk over the blocks in front of the pixels."""
    yield from range(_MOST_BLOCKS)
    raise _refuse_metadata()


def _check_place(place: int) -> None:
    if place > MAX_METADATA_BYTES:
        raise _refuse_metadata()


def _refuse_metadata() -> EngineError:
    return EngineError("invalid", "too much stands in front of its pixels")


def _jpeg(data: bytes) -> ImageHeader:
    place, orientation, size = 2, 0, None
    for _ in _blocks():
        place = data.index(0xFF, place) + 1
        marker = data[place]
        if marker in (_SCAN, _END):
            break
        if marker in _MARKERS_ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, place + 1)
        if marker in _MARKERS_OF_SIZE and size is None:
            size = struct.unpack_from(">HH", data, place + 4)
        if marker == _APP1 and data[place + 3 : place + 9] == b"Exif\0\0" and not orientation:
            orientation = orientation_of(data, place + 9, place + 1 + length)
        place += 1 + max(length, 2)
        _check_place(place)
    if size is None:
        raise EngineError("invalid", "its header says no size")
    return ImageHeader(
        format="JPEG", stored_width=size[1], stored_height=size[0], orientation=orientation or 1
    )


def _gif(data: bytes) -> ImageHeader:
    """The screen, or the first picture where that is larger."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place, is_extension = 13 + _colours(flags), False
    for _ in _blocks():
        if is_extension:
            is_extension = data[place] != 0
            place += 1 + data[place]
        elif data[place] == 0x2C:
            break
        elif data[place] == 0x21:
            is_extension = True
            place += 2
        else:
            raise EngineError("invalid", "it has no picture")
    left, top, own_width, own_height = struct.unpack_from("<HHHH", data, place + 1)
    return ImageHeader(
        format="GIF",
        stored_width=max(width, left + own_width),
        stored_height=max(height, top + own_height),
    )


def _colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        return _webp_extended(data)
    if kind == b"VP8 ":
        start, width, height = struct.unpack_from("<3sHH", data, 23)
        if start != b"\x9d\x01\x2a":
            raise EngineError("invalid", "its header is broken")
        return ImageHeader(
            format="WEBP", stored_width=width & 0x3FFF, stored_height=height & 0x3FFF
        )
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHeader(
            format="WEBP",
            stored_width=(bits & 0x3FFF) + 1,
            stored_height=(bits >> 14 & 0x3FFF) + 1,
        )
    raise EngineError("invalid", "its header is broken")


def _webp_extended(data: bytes) -> ImageHeader:
    """Its EXIF block stands behind the pixels; blocks are long, so that walking over them is short."""
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    place, orientation = 30, 1
    has_exif = bool(data[20] & 0x08)
    for _ in range(_MOST_BLOCKS if has_exif else 0):
        if place + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind == b"EXIF":
            orientation = orientation_of(data, place + 8, place + 8 + length)
            break
        place += 8 + length + (length & 1)
    return ImageHeader(
        format="WEBP", stored_width=width, stored_height=height, orientation=orientation
    )


def _bmp(data: bytes) -> ImageHeader:
    (length,) = struct.unpack_from("<I", data, 14)
    if length == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return ImageHeader(format="BMP", stored_width=width, stored_height=height)
    if length < 40:
        raise EngineError("invalid", "its header is broken")
    width, height = struct.unpack_from("<ii", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if compression not in (0, 3):
        raise EngineError("invalid", "compressed BMP files are not read here")
    return ImageHeader(format="BMP", stored_width=width, stored_height=abs(height))
