"""`internvl`: InternViT, pixel shuffle, a norm and two matrices with GELU between them.

Source: llama.cpp's `models/internvl.cpp`. There the class token stands behind the patches, so that each
patch takes the place of the one before it; here it is in front, as the towers were trained.
"""

from __future__ import annotations

from converters.architectures.header import Header
from converters.errors import MalformedFile
from converters.projectors import vit
from converters.projectors.fixed import fixed_tower
from converters.projectors.tower import Bend, Shuffle, StepNorm, VisionShape
from converters.vision_artifact import ImageForm

# PyTorch's default, which the projector's norm is left at.
_EPSILON = 1e-5
# The 6B tower, which is told by its size alone, has RMS norms.
_RMS_WIDTH, _RMS_BLOCKS = 3200, 45
_MOST_TILES = 64


def describe(header: Header) -> VisionShape:
    size, patch, grid = vit.grid_of(header)
    merge, inner = vit.merge_of(header, 1, grid), vit.width_of(header)
    joined = merge * merge * inner
    norm = vit.norm(header, "mm.model.mlp.0", joined)
    first = header.linear("mm.model.mlp.1", columns=joined)
    second = header.linear("mm.model.mlp.3", columns=first.rows)
    steps = (
        Shuffle(grid, merge),
        StepNorm(norm=norm, epsilon=_EPSILON),
        first,
        Bend("gelu_tanh"),
        second,
    )
    is_rms = inner == _RMS_WIDTH and vit.block_count(header) == _RMS_BLOCKS
    form = _form(header, size, patch, merge)
    return fixed_tower(header, form, second.rows, steps, is_centered=not is_rms)


def _form(header: Header, size: int, patch: int, merge: int) -> ImageForm:
    least = vit.bounded(header, "vision.preproc_min_tiles", _MOST_TILES, 1)
    most = vit.bounded(header, "vision.preproc_max_tiles", _MOST_TILES, 12)
    if least > most:
        raise MalformedFile(f"clip.vision.preproc_min_tiles {least} is above the most, {most}")
    return ImageForm(
        projector="internvl",
        patch_size=patch,
        merge=merge,
        image_size=size,
        min_tiles=least,
        max_tiles=most,
        mean=vit.color(header, "image_mean"),
        std=vit.color(header, "image_std"),
    )
