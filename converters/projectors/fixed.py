"""The frame of towers that look at tiles of one size: patches in raster order, one table of places."""

from __future__ import annotations

from converters.architectures.header import Header
from converters.projectors import vit
from converters.projectors.tower import Step, VisionShape
from converters.vision_artifact import ImageForm


def fixed_tower(
    header: Header,
    form: ImageForm,
    width: int,
    steps: tuple[Step, ...],
    *,
    blocks: int | None = None,
    is_centered: bool = True,
    has_last_norm: bool = True,
    is_bidirectional: bool = False,
    unused: tuple[str, ...] = (),
) -> VisionShape:
    """Of a file with one tile size. `width`: of the text model; `blocks`: only the first so many."""
    inner, grid = vit.width_of(header), form.image_size // form.patch_size
    token = vit.class_token(header, inner)
    count = vit.block_count(header) if blocks is None else blocks
    activation = vit.activation_of(header)
    last = vit.optional_norm(header, "v.post_ln", inner, is_centered=is_centered)
    return VisionShape(
        name=header.name,
        form=form,
        width=width,
        embedding_length=inner,
        epsilon=vit.epsilon_of(header),
        patches=vit.patch_linears(header, inner, form.patch_size)[:1],
        class_token=token,
        places=vit.places(header, inner, grid * grid + bool(token)),
        first_norm=vit.optional_norm(header, "v.pre_ln", inner, is_centered=is_centered),
        blocks=tuple(
            vit.block(header, index, inner, activation, is_centered=is_centered)
            for index in range(count)
        ),
        last_norm=last if has_last_norm else None,
        steps=steps,
        is_bidirectional=is_bidirectional,
        tile_patches=grid * grid,
        most_patches=grid * grid,
        unused=unused,
    )
