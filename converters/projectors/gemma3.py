"""`gemma3`: SigLIP, whose patches are averaged 4 × 4, normed and projected.

Source: llama.cpp's `models/siglip.cpp`. The norm's weight has its 1 folded in; the projection lies as
[E, text width]. Positions of one image see each other in the text model.
"""

from __future__ import annotations

from converters.architectures.header import Header
from converters.architectures.parts import Norm
from converters.projectors import vit
from converters.projectors.fixed import fixed_tower
from converters.projectors.tower import Pool, StepNorm, Turned, VisionShape
from converters.vision_artifact import ImageForm

_PROJECTION = "mm.input_projection.weight"
_NORM = "mm.soft_emb_norm.weight"


def describe(header: Header) -> VisionShape:
    size, patch, grid = vit.grid_of(header)
    merge, inner = vit.merge_of(header, 4, grid), vit.width_of(header)
    width = header.array(_PROJECTION, inner, 0)[1]
    norm = Norm(weight=header.vector(_NORM, inner))
    form = ImageForm(
        projector="gemma3",
        patch_size=patch,
        merge=merge,
        image_size=size,
        mean=vit.color(header, "image_mean"),
        std=vit.color(header, "image_std"),
    )
    steps = (
        Pool(grid, merge),
        StepNorm(norm=norm, epsilon=vit.epsilon_of(header)),
        Turned(weight=_PROJECTION, rows=width, columns=inner),
    )
    return fixed_tower(header, form, width, steps, is_bidirectional=True)
