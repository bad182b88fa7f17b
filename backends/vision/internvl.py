"""`internvl`: the grid of tiles whose shape is nearest to the image's, and the whole image after them.

Source: InternVL's own `dynamic_preprocess`, bicubic. llama.cpp chooses the grid that keeps most pixels
instead, takes none for images smaller than a tile, and resizes the whole bilinearly.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from backends.vision.patches import positions_of_tile
from backends.vision.plan import ImagePlan, MarkupText, Vectors
from backends.vision.tiled import TiledKind, tile_corners, tiles_of
from converters.vision_artifact import ImageForm

_FILTER = Image.Resampling.BICUBIC


class InternVl(TiledKind):
    def plan(self, form: ImageForm, width: int, height: int) -> ImagePlan:
        columns, rows = _nearest_grid(form, width, height)
        corners = tile_corners(form, columns, rows)
        views = len(corners) + (len(corners) > 1)
        parts = (
            MarkupText("<img>"),
            Vectors(length=views * positions_of_tile(form)),
            MarkupText("</img>"),
        )
        size = form.image_size
        return ImagePlan(width=columns * size, height=rows * size, parts=parts, tiles=corners)

    def views(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[Image.Image]:
        yield from tiles_of(form, plan, image.resize((plan.width, plan.height), _FILTER))
        if len(plan.tiles) > 1:
            yield image.resize((form.image_size, form.image_size), _FILTER)


def _nearest_grid(form: ImageForm, width: int, height: int) -> tuple[int, int]:
    """(columns, rows). Of grids of one shape the larger one where it is more than half filled."""
    best, least = (1, 1), float("inf")
    for columns, rows in _grids(form.min_tiles, form.max_tiles):
        difference = abs(width / height - columns / rows)
        area = form.image_size**2 * columns * rows
        if difference < least or (difference == least and 2 * width * height > area):
            best, least = (columns, rows), difference
    return best


def _grids(least: int, most: int) -> list[tuple[int, int]]:
    """(columns, rows) with so many tiles, smaller ones first."""
    found = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most // columns + 1)
        if columns * rows >= least
    ]
    return sorted(found, key=lambda grid: grid[0] * grid[1])
