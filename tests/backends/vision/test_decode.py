from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from backends.types import EngineError
from backends.vision.decode import MAX_BYTES, MAX_PIXELS, decode_image, image_header
from tests.backends.vision.picture_files import FORMATS, exif, file_of, picture, png, png_chunk


def refusal(data: bytes) -> str:
    with pytest.raises(EngineError) as found:
        decode_image(data, "image 3")
    assert found.value.code == "invalid"
    return str(found.value)


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (24, 16), (17, 301)])
def test_each_format_gives_its_picture(kind: str, size: tuple[int, int]):
    made = picture(*size)
    data = file_of(made, kind)
    header = image_header(data, "image 1")
    assert (header.format, header.width, header.height) == (kind, *size)
    found = decode_image(data, "image 1")
    assert (found.mode, found.size) == ("RGB", size)
    off = np.asarray(found, np.int16) - np.asarray(made, np.int16)
    assert np.abs(off).max() <= {"PNG": 0, "BMP": 0, "GIF": 12}.get(kind, 160)
    assert np.abs(off).mean() <= (0 if kind in ("PNG", "BMP") else 12)


def test_webp_of_all_three_forms_tells_its_size():
    made = picture(33, 21)
    clear = made.convert("RGBA")
    for data in (
        file_of(made, "WEBP"),
        file_of(made, "WEBP", lossless=True),
        file_of(clear, "WEBP", exif=exif(6)),
    ):
        header = image_header(data, "image 1")
        assert (header.stored_width, header.stored_height) == (33, 21)
        assert decode_image(data, "image 1").size == (header.width, header.height)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_the_library_itself_would(kind: str, orientation: int):
    from PIL import ImageOps

    data = file_of(picture(24, 16), kind, exif=exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    header = image_header(data, "image 1")
    assert (header.width, header.height) == expected.size
    assert np.array_equal(np.asarray(decode_image(data, "image 1")), np.asarray(expected))


@pytest.mark.parametrize(
    "nonsense", [b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"]
)
def test_nonsense_where_the_orientation_should_be_means_none(nonsense: bytes):
    data = png(8, 8, png_chunk(b"eXIf", nonsense), pixels=b"\0" * 72)
    assert image_header(data, "image 1").orientation == 1
    assert decode_image(data, "image 1").size == (8, 8)


def test_what_is_transparent_is_white():
    layered = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    layered.putpixel((1, 1), (10, 20, 30, 255))
    layered.putpixel((2, 2), (0, 0, 0, 128))
    for kind in ("PNG", "WEBP"):
        found = decode_image(file_of(layered, kind, lossless=True), "image 1")
        assert pixel(found) == (255, 255, 255)
        assert pixel(found, 1, 1) == (10, 20, 30)
        assert pixel(found, 2, 2) == (127, 127, 127)
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        found = decode_image(file_of(palette, kind, transparency=0), "image 1")
        assert (pixel(found), pixel(found, 1)) == ((255, 255, 255), (200, 0, 0))
    grey = Image.new("LA", (1, 1), (9, 0))
    assert pixel(decode_image(file_of(grey), "image 1")) == (255, 255, 255)


def test_sixteen_bits_keep_their_upper_half():
    levels = np.array([[0, 255, 256, 0x8000, 0xFFFF]], np.uint16)
    found = decode_image(file_of(Image.fromarray(levels)), "image 1")
    assert [pixel(found, x)[0] for x in range(5)] == [0, 0, 1, 128, 255]
    found = decode_image(file_of(Image.fromarray(levels), transparency=0x8000), "image 1")
    assert pixel(found, 3) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("1", "PNG")])
def test_other_modes_become_rgb(mode: str, kind: str):
    made = picture().convert(mode)
    found = decode_image(file_of(made, kind), "image 1")
    off = np.asarray(found, np.int16) - np.asarray(made.convert("RGB"), np.int16)
    assert (found.mode, np.abs(off).mean() < 12) == ("RGB", True)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_taken(kind: str):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = file_of(first, kind, save_all=True, append_images=[second], lossless=True)
    assert pixel(decode_image(data, "image 1")) == (255, 0, 0)


def test_a_huge_photograph_comes_smaller_but_not_too_small():
    data = file_of(Image.new("RGB", (4096, 4224), (90, 80, 70)), "JPEG", exif=exif(6))
    assert decode_image(data, "image 1", (896, 896)).size == (2112, 2048)
    assert decode_image(data, "image 1", (896, 2100)).size == (4224, 4096)
    assert decode_image(data, "image 1").size == (4224, 4096)


def test_a_refusal_names_the_image_and_the_reason():
    assert refusal(b"") == "image 3 is empty"
    assert refusal(b"GIF89b") == "image 3 cannot be read: it is no PNG, JPEG, WebP, GIF or BMP file"
    assert refusal(b"\0" * (MAX_BYTES + 1)) == "image 3 has more than 48 MiB"
    assert refusal(png(100_000, 1000)).startswith("image 3 is too large: 100000 × 1000 pixels")
    assert refusal(png(0, 5)).endswith("it has no pixels")
    assert "truncated" in refusal(file_of(picture(), "JPEG")[:-20])
    rle = bytearray(file_of(picture(), "BMP"))
    rle[30:34] = struct.pack("<I", 1)
    assert refusal(bytes(rle)).endswith("compressed BMP files are not read here")


def hidden(size: int) -> bytes:
    return b"a\0\0" + zlib.compress(bytes(size))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iCCP", hidden(1 << 26)),
        png_chunk(b"zTXt", hidden(1 << 26)),
        png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000))) * 200,
    ],
    ids=["profile", "text", "texts"],
)
def test_what_unpacks_to_more_than_it_should_takes_no_memory(chunk: bytes):
    data = png(8, 8, chunk, pixels=b"\0" * 72)
    tracemalloc.start()
    try:
        decode_image(data, "image 1")
    except EngineError as error:
        assert error.code == "invalid"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20


def test_too_many_blocks_in_front_of_the_pixels_are_refused():
    small = png_chunk(b"tEXt", b"a\0b")
    assert refusal(png(8, 8, small * 20_000)).endswith("too much stands in front of its pixels")
    gif = file_of(picture(), "GIF")
    comment = b"\x21\xfe" + (b"\xff" + bytes(255)) * 5000 + b"\0"
    start = 13 + 3 * 256
    assert gif[start] in (0x21, 0x2C)
    assert refusal(gif[:start] + comment + gif[start:]).endswith("in front of its pixels")
    assert "cannot be read" in refusal(b"\xff\xd8" + b"\xff" * 100_000)


def test_one_more_pixel_than_may_be_is_refused_before_anything_is_made_of_it():
    side = int(MAX_PIXELS**0.5)
    for width, height in ((side, side + 1), (2**31, 2**31), (65536, 65536)):
        with pytest.raises(EngineError, match="too large"):
            image_header(png(width, height), "image 1")
    assert image_header(png(side, side), "image 1").width == side


WHOLE = {
    kind: file_of(picture(9, 7), kind, exif=exif(6))
    if kind in ("PNG", "JPEG", "WEBP")
    else file_of(picture(9, 7), kind)
    for kind in FORMATS
}


@pytest.mark.filterwarnings("ignore")
@given(
    kind=st.sampled_from(FORMATS),
    cut=st.integers(0, 2000),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    tail=st.binary(max_size=40),
)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_broken_file_is_refused_or_gives_a_picture_of_the_size_that_was_counted_on(
    kind: str, cut: int, changes: list[tuple[int, int]], tail: bytes
):
    data = bytearray(WHOLE[kind])
    for place, value in changes:
        data[place % len(data)] = value
    data = bytes(data[:cut] if cut < len(data) else data) + tail
    try:
        header = image_header(data, "image 1")
        if header.width * header.height > 1 << 20:
            return  # allowed, but it takes long
        found = decode_image(data, "image 1")
    except EngineError as error:
        assert error.code == "invalid"
        assert str(error).startswith("image 1 ")
    else:
        assert (found.mode, found.size) == ("RGB", (header.width, header.height))
