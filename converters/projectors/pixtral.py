"""`pixtral`: Pixtral, and Mistral Small 3.1 and 3.2, which norm and merge 2 × 2 patches before projecting.

Source: llama.cpp's `models/pixtral.cpp`. The vector of [IMG_BREAK] lies in the projector file, where the
rows of queries and keys are put so that neighbours are rotated together.
"""

from __future__ import annotations

from converters.architectures.header import Header
from converters.architectures.parts import Norm
from converters.errors import MalformedFile
from converters.projectors import vit
from converters.projectors.library import ROTATES_HALVES
from converters.projectors.sized import image_form, sized_tower
from converters.projectors.tower import Bend, Group, Step, StepNorm, VisionShape
from converters.vision_artifact import ImageForm

LEAST_POSITIONS, MOST_POSITIONS = 8, 1024
_MERGER = "mm.patch_merger"
_BREAK = "v.token_embd.img_break"


def describe(header: Header) -> VisionShape:
    form = image_form(header, "pixtral", 1, least=LEAST_POSITIONS, most=MOST_POSITIONS)
    first = header.linear("mm.1", columns=vit.width_of(header))
    second = header.linear("mm.2", columns=first.rows)
    return sized_tower(
        header,
        form,
        second.rows,
        (*_merger(header, form), first, Bend("gelu_tanh"), second),
        rotation="halves" if header.flag(ROTATES_HALVES, False) else "neighbours",
        is_centered=False,
        row_break=header.vector(_BREAK, second.rows),
    )


def _merger(header: Header, form: ImageForm) -> tuple[Step, ...]:
    """The matrix reads the patches number by number, as `torch.nn.functional.unfold` lays them."""
    has_merger = header.has_tensor(f"{_MERGER}.weight")
    if has_merger != (form.merge > 1):
        raise MalformedFile(
            f"clip.vision.spatial_merge_size is {form.merge}, which does not fit mm.patch_merger"
        )
    if not has_merger:
        return ()
    inner = vit.width_of(header)
    norm = Norm(weight=header.vector("mm.input_norm.weight", inner))
    merger = header.linear(_MERGER, columns=form.merge**2 * inner, rows=inner)
    group = Group(form.merge**2, is_interleaved=True)
    return (StepNorm(norm=norm, epsilon=vit.epsilon_of(header)), group, merger)
