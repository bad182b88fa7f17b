"""The frame of towers that look at images of any size: patches of one position as neighbours, rotated by
row and column.
"""

from __future__ import annotations

from converters.architectures.header import Header
from converters.errors import MalformedFile, Unsupported
from converters.projectors import vit
from converters.projectors.tower import Rotation, Step, Tap, VisionShape
from converters.vision_artifact import ImageForm

# A side of 8192 pixels; far above what the kinds allow themselves.
MAX_PIXELS = 1 << 26
ROTATED_BASE = 10000.0


def image_form(
    header: Header, projector: str, default_merge: int, *, least: int, most: int
) -> ImageForm:
    """`least` and `most` are the positions of an image, where the file does not say its pixels."""
    patch = vit.bounded(header, "vision.patch_size", vit.MAX_PATCH)
    merge = vit.bounded(header, "vision.spatial_merge_size", vit.MAX_MERGE, default_merge)
    step = patch * merge
    max_pixels = header.count("vision.image_max_pixels", 0) or most * step**2
    min_pixels = header.count("vision.image_min_pixels", 0) or min(least * step**2, max_pixels)
    if not min_pixels <= max_pixels <= MAX_PIXELS or max_pixels < step**2:
        raise MalformedFile(f"clip.vision: images of {min_pixels} to {max_pixels} pixels")
    return ImageForm(
        projector=projector,
        patch_size=patch,
        merge=merge,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        mean=vit.color(header, "image_mean"),
        std=vit.color(header, "image_std"),
        is_grouped=True,
        head_size=rotated_size(header),
        rope_base=ROTATED_BASE,
    )


def rotated_size(header: Header) -> int:
    """Of a head. One half of its pairs turns with the row, the other with the column."""
    size = vit.width_of(header) // vit.bounded(header, "vision.attention.head_count", vit.MAX_HEADS)
    if not size or size % 4:
        raise Unsupported(f"heads of {size} numbers, rotated by row and column, are not supported")
    return size


def sized_tower(
    header: Header,
    form: ImageForm,
    width: int,
    steps: tuple[Step, ...],
    *,
    rotation: Rotation,
    is_centered: bool,
    full_block_period: int = 1,
    has_places: bool = False,
    taps: tuple[Tap, ...] = (),
    row_break: str = "",
) -> VisionShape:
    """`width`: of the text model. Of `full_block_period` blocks the last one looks beyond its window."""
    inner, activation = vit.width_of(header), vit.activation_of(header)
    rows = form.grid_size**2
    return VisionShape(
        name=header.name,
        form=form,
        width=width,
        embedding_length=inner,
        epsilon=vit.epsilon_of(header),
        patches=vit.patch_linears(header, inner, form.patch_size),
        places=vit.places(header, inner, rows, is_interpolated=True) if has_places else None,
        rotation=rotation,
        first_norm=vit.optional_norm(header, "v.pre_ln", inner, is_centered=is_centered),
        blocks=tuple(
            vit.block(
                header,
                index,
                inner,
                activation,
                is_centered=is_centered,
                is_windowed=(index + 1) % full_block_period != 0,
            )
            for index in range(vit.block_count(header))
        ),
        last_norm=vit.optional_norm(header, "v.post_ln", inner, is_centered=is_centered),
        steps=steps,
        taps=taps,
        row_break=row_break,
        most_patches=form.max_pixels // form.patch_size**2,
    )
