"""Small image files for tests, and some that no honest program writes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    """Two halves, upper and lower, of other colours, with a little noise."""
    pixels = np.random.default_rng(seed).integers(0, 8, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2, :, 0] += 200
    pixels[height // 2 :, :, 2] += 200
    return Image.fromarray(pixels)


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """Grey, of any size that it likes to claim; `pixels` as they are to be compressed."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 64 if pixels is None else pixels)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + b"".join(chunks) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
