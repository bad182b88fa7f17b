"""`qwen2vl_merger`, `qwen2.5vl_merger` and `qwen3vl_merger`: images of any size.

Sources: llama.cpp's `mtmd_image_preprocessor_dyn_size`, `clip_image_batch_encode` (positions, windows)
and `models/qwen2vl.cpp`, `models/qwen3vl.cpp`; Hugging Face's `Qwen2VLImageProcessor`. The bounds are
llama.cpp's 8 to 4096 positions unless the file says others; the original processors allow 4 (3 VL: 64)
to 16384, which few machines could bear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backends.vision.grid import (
    Floats,
    Grid,
    Indices,
    fitted_grid,
    patches_of,
    places_of,
    positions_of,
    rotations,
)
from backends.vision.plan import ImagePlan, MarkupText, TowerInputs, Vectors
from converters.vision_artifact import ImageForm


class QwenVl:
    """An `ImageKind`. What the three differ by, the form says: windows, a table of places."""

    def plan(self, form: ImageForm, width: int, height: int) -> ImagePlan:
        wide, high, (rows, columns) = fitted_grid(form, width, height)
        vectors = Vectors(length=rows * columns, rows=rows, columns=columns)
        start, end = MarkupText("<|vision_start|>"), MarkupText("<|vision_end|>")
        return ImagePlan(width=wide, height=high, parts=(start, vectors, end))

    def inputs(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[TowerInputs]:
        """One run, for the whole image."""
        grid = positions_of(form, plan)
        order, windows = window_order(form, grid)
        row, column = (places[order] for places in places_of(form, grid))
        patches = patches_of(form, plan, image)[order]
        quarter = form.head_size // 4
        by_place = form.rope_base ** (-np.arange(quarter) / quarter)
        cos, sin = rotations(row, column, by_place, by_place)
        found: TowerInputs = {
            "patches": patches.reshape(1, row.size, -1),
            "cos": cos,
            "sin": sin,
        }
        if form.window_size:
            found["segments"] = np.repeat(windows, form.merge**2)
        if form.grid_size:
            found["place_ids"], found["place_weights"] = _mixed_places(form, grid, row, column)
        yield found

    def arrange(
        self,
        form: ImageForm,
        plan: ImagePlan,
        embeddings: Sequence[NDArray[np.float32]],
        row_break: NDArray[np.float32] | None,
    ) -> list[NDArray[np.float32]]:
        order, _ = window_order(form, positions_of(form, plan))
        arranged = np.empty_like(embeddings[0][0])
        arranged[order] = embeddings[0][0]
        return [arranged]


def window_order(form: ImageForm, grid: Grid) -> tuple[Indices, Indices]:
    """(positions in the order in which the tower sees them, the window of each), int64 [positions].

    Windows in raster order, cut off at the image's edges; raster order within, or at all without.
    """
    row, column = np.divmod(np.arange(grid.rows * grid.columns), grid.columns)
    side = form.window_size // (form.patch_size * form.merge)
    if not side:
        return np.arange(row.size), np.zeros(row.size, np.int64)
    windows = row // side * -(-grid.columns // side) + column // side
    order = np.argsort(windows, kind="stable")
    return order, windows[order]


def _mixed_places(
    form: ImageForm, grid: Grid, row: Indices, column: Indices
) -> tuple[Indices, Floats]:
    """Four rows of the table for each patch, [patches, 4]: bilinear, the corners being the table's own."""
    last = form.grid_size - 1
    low_row, part_row = _between(row, grid.rows * form.merge, last)
    low_column, part_column = _between(column, grid.columns * form.merge, last)
    ids, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            high_row = np.minimum(low_row + down, last)
            high_column = np.minimum(low_column + right, last)
            ids.append(high_row * form.grid_size + high_column)
            by_row = part_row if down else 1 - part_row
            weights.append(by_row * (part_column if right else 1 - part_column))
    return np.stack(ids, axis=1), np.stack(weights, axis=1).astype(np.float32)


def _between(place: Indices, count: int, last: int) -> tuple[Indices, NDArray[np.floating]]:
    """(the place in the table before it, how far it is behind that), for one of `count` patches."""
    exact = place.reshape(-1) * (last / max(1, count - 1))
    low = np.minimum(exact.astype(np.int64), last)
    return low, exact - low
