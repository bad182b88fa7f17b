"""`pixtral`: Pixtral, and Mistral Small 3.1 and 3.2, whose patches are merged 2 × 2.

Sources: llama.cpp's `mtmd_image_preprocessor_dyn_size`, `models/pixtral.cpp` and `build_rope_2d`; Hugging
Face's `PixtralImageProcessor`. The bounds are llama.cpp's 8 to 1024 positions unless the file says
others; the original bounds the longer side instead (1024 or 1540 pixels) and never enlarges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backends.types import EngineError
from backends.vision.grid import fitted_grid, patches_of, places_of, positions_of, rotations
from backends.vision.plan import ImagePlan, MarkupText, TowerInputs, Vectors
from converters.vision_artifact import ImageForm


class Pixtral:
    """An `ImageKind`. The vector of [IMG_BREAK] stands behind each row of positions but the last."""

    def plan(self, form: ImageForm, width: int, height: int) -> ImagePlan:
        wide, high, (rows, columns) = fitted_grid(form, width, height)
        vectors = Vectors(length=rows * columns + rows - 1)
        return ImagePlan(width=wide, height=high, parts=(vectors, MarkupText("[IMG_END]")))

    def inputs(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[TowerInputs]:
        """One run, for the whole image."""
        row, column = places_of(form, positions_of(form, plan))
        patches = patches_of(form, plan, image)
        even = -4 * np.arange(form.head_size // 4) / form.head_size
        odd = even - 2 / form.head_size
        cos, sin = rotations(row, column, form.rope_base**even, form.rope_base**odd)
        yield {"patches": patches.reshape(1, row.size, -1), "cos": cos, "sin": sin}

    def arrange(
        self,
        form: ImageForm,
        plan: ImagePlan,
        embeddings: Sequence[NDArray[np.float32]],
        row_break: NDArray[np.float32] | None,
    ) -> list[NDArray[np.float32]]:
        """Raises EngineError("internal") without a row break: every file of the kind has one."""
        if row_break is None:
            raise EngineError("internal", "a pixtral tower without a row break")
        rows, columns = positions_of(form, plan)
        width = embeddings[0].shape[-1]
        found = np.empty((rows, columns + 1, width), np.float32)
        found[:, :columns] = embeddings[0].reshape(rows, columns, width)
        found[:, columns] = row_break
        return [found.reshape(-1, width)[:-1]]
