"""`idefics3`: SmolVLM and Idefics 3, tiles row by row with markup, and the whole image after them.

Source: Hugging Face's `Idefics3ImageProcessor` and `Idefics3Processor`: the longer side becomes
`longest_edge`, then both sides are stretched to whole tiles; Lanczos. llama.cpp resizes once,
bilinearly, and gives an image of one tile that tile and the whole, which are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from PIL import Image

from backends.vision.patches import positions_of_tile
from backends.vision.plan import ImagePart, ImagePlan, MarkupText, Vectors
from backends.vision.tiled import TiledKind, tile_corners, tiles_of
from converters.vision_artifact import ImageForm

_FAKE, _WHOLE = "<fake_token_around_image>", "<global-img>"
_FILTER = Image.Resampling.LANCZOS


class Idefics3(TiledKind):
    def plan(self, form: ImageForm, width: int, height: int) -> ImagePlan:
        size = form.image_size
        wide, high = _whole_tiles(form, *_scaled(form, width, height))
        columns, rows = wide // size, high // size
        length, corners = positions_of_tile(form), tile_corners(form, columns, rows)
        if len(corners) == 1:
            whole = (MarkupText(f"{_FAKE}{_WHOLE}"), Vectors(length=length), MarkupText(_FAKE))
            return ImagePlan(width=size, height=size, parts=whole)
        parts = tuple(_parts(columns, rows, length))
        return ImagePlan(width=wide, height=high, parts=parts, tiles=corners)

    def views(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[Image.Image]:
        scaled = image.resize(_scaled(form, *image.size), _FILTER)
        resized = scaled.resize((plan.width, plan.height), _FILTER)
        yield from tiles_of(form, plan, resized)
        yield resized.resize((form.image_size, form.image_size), _FILTER)


def _parts(columns: int, rows: int, length: int) -> Iterator[ImagePart]:
    before = ""
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            yield MarkupText(f"{before}{_FAKE}<row_{row}_col_{column}>")
            yield Vectors(length=length)
            before = ""
        before = "\n"
    yield MarkupText(f"\n\n{_FAKE}{_WHOLE}")
    yield Vectors(length=length)
    yield MarkupText(_FAKE)


def _scaled(form: ImageForm, width: int, height: int) -> tuple[int, int]:
    """The longer side `longest_edge`, the other one even."""
    longest = form.longest_edge
    if width >= height:
        return longest, _even(longest * height / width)
    return _even(longest * width / height), longest


def _even(side: float) -> int:
    whole = max(1, int(side))
    return whole + whole % 2


def _whole_tiles(form: ImageForm, width: int, height: int) -> tuple[int, int]:
    """The longer side rounded up to tiles, then the other one in proportion, rounded up too."""
    if width >= height:
        wide = _rounded_up(width, form.image_size)
        return wide, _rounded_up(max(1, int(wide * height / width)), form.image_size)
    high = _rounded_up(height, form.image_size)
    return _rounded_up(max(1, int(high * width / height)), form.image_size), high


def _rounded_up(side: int, unit: int) -> int:
    return math.ceil(side / unit) * unit
