"""Images of any size on a grid of patches, of which `merge` × `merge` become one position.

The order is that of `ImageForm.is_grouped`: the patches of a position are neighbours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backends.vision.patches import normalised
from backends.vision.plan import ImagePlan
from converters.vision_artifact import ImageForm

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class Grid(NamedTuple):
    """Of positions."""

    rows: int
    columns: int


def fitted_size(width: int, height: int, *, step: int, least: int, most: int) -> tuple[int, int]:
    """(width, height) in whole steps, near the image's own, with `least` to `most` pixels.

    As `smart_resize` of Hugging Face's processors, whose sides are rounded half to even (llama.cpp:
    half up). There strips longer than 200 times their breadth are refused, and in llama.cpp they may
    exceed `most`; here they are shortened to it.
    """
    cells = max(1, most // step**2)
    columns, rows = (max(1, round(side / step)) for side in (width, height))
    if rows * columns > cells:
        ratio = math.sqrt(width * height / most)
        columns, rows = (max(1, math.floor(side / ratio / step)) for side in (width, height))
    elif rows * columns * step**2 < least:
        ratio = math.sqrt(least / (width * height))
        columns, rows = (math.ceil(side * ratio / step) for side in (width, height))
    if columns > rows:
        columns = min(columns, max(1, cells // rows))
    else:
        rows = min(rows, max(1, cells // columns))
    return columns * step, rows * step


def fitted_grid(form: ImageForm, width: int, height: int) -> tuple[int, int, Grid]:
    """(width, height, positions) that an image of so many pixels is fitted to, within the form's bounds."""
    step = form.patch_size * form.merge
    wide, high = fitted_size(width, height, step=step, least=form.min_pixels, most=form.max_pixels)
    return wide, high, Grid(high // step, wide // step)


def positions_of(form: ImageForm, plan: ImagePlan) -> Grid:
    step = form.patch_size * form.merge
    return Grid(plan.height // step, plan.width // step)


def patches_of(form: ImageForm, plan: ImagePlan, image: Image.Image) -> Floats:
    """Float32 [positions, merge², 3 · p · p], normalised. `image` is RGB; resized by Pillow's bicubic
    filter, as in Hugging Face's processors, which keep no proportions (llama.cpp does, and adds black).
    """
    if image.size != (plan.width, plan.height):
        image = image.resize((plan.width, plan.height), Image.Resampling.BICUBIC)
    pixels = normalised(form, np.asarray(image))
    (rows, columns), merge, side = positions_of(form, plan), form.merge, form.patch_size
    cut = pixels.reshape(rows, merge, side, columns, merge, side, 3)
    grouped = cut.transpose(0, 3, 1, 4, 6, 2, 5)
    return np.ascontiguousarray(grouped).reshape(rows * columns, merge**2, -1)


def places_of(form: ImageForm, grid: Grid) -> tuple[Indices, Indices]:
    """(row, column) of each patch, each int64 [positions, merge²]."""
    merge = form.merge
    inner_row, inner_column = np.divmod(np.arange(merge**2), merge)
    row, column = np.divmod(np.arange(grid.rows * grid.columns), grid.columns)
    return row[:, None] * merge + inner_row, column[:, None] * merge + inner_column


def rotations(
    row: Indices, column: Indices, by_row: NDArray[np.float64], by_column: NDArray[np.float64]
) -> tuple[Floats, Floats]:
    """(cos, sin), float32 [patches, pairs]: the first pairs turn with the row, the rest with the column."""
    angles = np.concatenate(
        (np.outer(row.reshape(-1), by_row), np.outer(column.reshape(-1), by_column)), axis=1
    )
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
