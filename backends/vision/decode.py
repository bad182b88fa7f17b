"""Image files as RGB pictures. What comes is a stranger's: bounded before anything is unpacked.

Read are PNG, JPEG, WebP (what Ollama takes), GIF and BMP (what browsers and screenshot tools make besides).
Of an animation the first picture is taken. Orientation from EXIF is applied, as cameras mean it; colour
profiles are not: numbers are taken as sRGB. What is transparent is put on white. 16 bits are cut to 8.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from backends.types import EngineError
from backends.vision.header import ImageHeader, read_header

# Eight thousand squared. Most formats take up to 9 bytes per pixel on the way, WebP 17.
MAX_PIXELS = 1 << 26
MAX_BYTES = 48 << 20
# JPEG files from here on are read at a half, a quarter or an eighth where that leaves twice what is wanted.
_LARGE_PIXELS = 1 << 24

# By class, not through `Image.open`: that would try others, and make of a JPEG whatever its data ask for.
_FILES: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_header(data: bytes, name: str) -> ImageHeader:
    """`name` is for people ("image 2"). Raises EngineError("invalid") for what will not be decoded."""
    if not data:
        raise EngineError("invalid", f"{name} is empty")
    if len(data) > MAX_BYTES:
        raise EngineError("invalid", f"{name} has more than {MAX_BYTES >> 20} MiB")
    try:
        header = read_header(data)
    except EngineError as error:
        raise EngineError(error.code, f"{name} cannot be read: {error}") from error
    if min(header.width, header.height) < 1:
        raise EngineError("invalid", f"{name} cannot be read: it has no pixels")
    if header.width * header.height > MAX_PIXELS:
        size = f"{header.width} × {header.height} pixels"
        raise EngineError("invalid", f"{name} is too large: {size}, at most {MAX_PIXELS} are read")
    return header


def decode_image(data: bytes, name: str, wanted: tuple[int, int] = (0, 0)) -> Image.Image:
    """The whole picture in RGB, upright. Raises EngineError: "invalid", or "memory".

    `wanted`: (width, height) that it will be resized to. A very large photograph may come smaller than it
    is stored, but at least twice as large as that.
    """
    header = image_header(data, name)
    try:
        return _decode(data, header, wanted)
    except MemoryError as error:
        raise EngineError("memory", f"{name}: not enough memory to decode it") from error
    except Exception as error:
        # The library raises a dozen unrelated classes for broken files.
        reason = str(error) or type(error).__name__
        raise EngineError("invalid", f"{name} cannot be read: {reason}") from error


def _decode(data: bytes, header: ImageHeader, wanted: tuple[int, int]) -> Image.Image:
    with _FILES[header.format](io.BytesIO(data)) as file:
        if file.size != (header.stored_width, header.stored_height):
            raise ValueError("it says two sizes")
        if header.stored_width * header.stored_height >= _LARGE_PIXELS and min(wanted) > 0:
            width, height = wanted[::-1] if header.is_turned else wanted
            file.draft(None, (2 * width, 2 * height))
        file.load()
        image = _as_rgb(file)
    turn = _TURNS.get(header.orientation)
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Converting to its own mode would copy.
    layered = image if image.mode == "RGBA" else image.convert("RGBA")
    paper = Image.new("RGB", layered.size, "white")
    paper.paste(layered, mask=layered.getchannel("A"))
    return paper


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits; the library itself would make white of all that is over 255."""
    levels = np.asarray(image).astype(np.uint16)
    grey = (levels >> 8).astype(np.uint8)
    invisible = image.info.get("transparency")
    if isinstance(invisible, int):
        grey[levels == invisible] = 255
    return Image.fromarray(grey).convert("RGB")
