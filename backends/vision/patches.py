"""Images as the numbers that a tower takes: cut into patches, normalised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from converters.vision_artifact import ImageForm

_HIGHEST = np.float32(255)


def grid_side(form: ImageForm) -> int:
    """Patches in a row of a tile; pixels that are left over at its right and bottom are not looked at."""
    return form.image_size // form.patch_size


def positions_of_tile(form: ImageForm) -> int:
    return (grid_side(form) // form.merge) ** 2


def tile_patches(form: ImageForm, tile: Image.Image) -> NDArray[np.float32]:
    """[1, P, 3·p·p] of an RGB image of `image_size` × `image_size`, in raster order."""
    side, patch = grid_side(form), form.patch_size
    pixels = np.asarray(tile)[: side * patch, : side * patch]
    cut = normalised(form, pixels).reshape(side, patch, side, patch, 3)
    return np.ascontiguousarray(cut.transpose(0, 2, 4, 1, 3)).reshape(1, side * side, -1)


def normalised(form: ImageForm, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """u8 [.., 3] → (x / 255 - mean) / std, in fp32 as llama.cpp does."""
    mean, std = np.array(form.mean, np.float32), np.array(form.std, np.float32)
    return (pixels.astype(np.float32) / _HIGHEST - mean) / std
