"""`idefics3`: SmolVLM and Idefics 3, SigLIP whose patches are put together by pixel shuffle.

Source: llama.cpp's `models/siglip.cpp` and `build_patch_merge_permute`.
"""

from __future__ import annotations

from converters.architectures.header import Header
from converters.errors import MalformedFile
from converters.projectors import vit
from converters.projectors.fixed import fixed_tower
from converters.projectors.tower import Shuffle, VisionShape
from converters.vision_artifact import ImageForm

# The longest side that Hugging Face's processor makes where the file says nothing.
_LONGEST_EDGE_TILES = 4
# Each tile is a run of its own, so that a file must not ask for any number of them.
_MOST_EDGE_TILES = 16


def describe(header: Header) -> VisionShape:
    size, patch, grid = vit.grid_of(header)
    merge, inner = vit.merge_of(header, 1, grid), vit.width_of(header)
    projection = header.linear("mm.model.fc", columns=merge * merge * inner)
    longest = header.count("vision.preproc_image_size", 0) or _LONGEST_EDGE_TILES * size
    if longest > _MOST_EDGE_TILES * size:
        raise MalformedFile(f"clip.vision.preproc_image_size {longest} for tiles of {size}")
    form = ImageForm(
        projector="idefics3",
        patch_size=patch,
        merge=merge,
        image_size=size,
        longest_edge=longest,
        mean=vit.color(header, "image_mean"),
        std=vit.color(header, "image_std"),
    )
    return fixed_tower(header, form, projection.rows, (Shuffle(grid, merge), projection))
