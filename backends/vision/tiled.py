"""What kinds with tiles of one size share: each tile is a run of its own, so that memory is bounded."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backends.vision.patches import tile_patches
from backends.vision.plan import ImagePlan, TowerInputs
from converters.vision_artifact import ImageForm


class TiledKind(abc.ABC):
    """Half an `ImageKind` of backends.vision.plan."""

    @abc.abstractmethod
    def views(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[Image.Image]:
        """What the tower looks at one after the other: images of `image_size` × `image_size`."""

    def inputs(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[TowerInputs]:
        for view in self.views(form, plan, image):
            yield {"patches": tile_patches(form, view)}

    def arrange(
        self,
        form: ImageForm,
        plan: ImagePlan,
        embeddings: Sequence[NDArray[np.float32]],
        row_break: NDArray[np.float32] | None,
    ) -> list[NDArray[np.float32]]:
        """All positions in the order of the views, cut as the plan's vectors are long."""
        lines = np.concatenate([tile for run in embeddings for tile in run])
        ends = np.cumsum([part.length for part in plan.vectors])[:-1]
        return np.split(lines, ends)


def tiles_of(form: ImageForm, plan: ImagePlan, resized: Image.Image) -> Iterator[Image.Image]:
    for left, top in plan.tiles:
        yield resized.crop((left, top, left + form.image_size, top + form.image_size))


def tile_corners(form: ImageForm, columns: int, rows: int) -> tuple[tuple[int, int], ...]:
    """(left, top) of each, row by row."""
    size = form.image_size
    return tuple((column * size, row * size) for row in range(rows) for column in range(columns))
