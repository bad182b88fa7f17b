"""`mlp`: LLaVA 1.5, CLIP's tower without its last block and two matrices with GELU between them.

Source: llama.cpp's `models/llava.cpp`: blocks up to the last but one, or up to `feature_layer`. There the
class token stands behind the patches; here in front, as the towers were trained and the place table
has it. LLaVA 1.6 (`image_grid_pinpoints`, `model.image_newline`) and several feature layers are refused.
"""

from __future__ import annotations

from converters.architectures.header import Header
from converters.errors import MalformedFile, Unsupported
from converters.projectors import vit
from converters.projectors.fixed import fixed_tower
from converters.projectors.tower import Bend, Step, VisionShape
from converters.vision_artifact import ImageForm


def describe(header: Header) -> VisionShape:
    if header.has("vision.image_grid_pinpoints") or header.has_tensor("model.image_newline"):
        raise Unsupported("images in tiles of several shapes (LLaVA 1.6) are not supported yet")
    if header.has_tensor("mm.3.weight"):
        raise Unsupported("a projector 'mlp' with norms (Yi) is not supported yet")
    size, patch, _ = vit.grid_of(header)
    inner = vit.width_of(header)
    first = header.linear("mm.0", columns=inner)
    steps: tuple[Step, ...] = (first, Bend("gelu_tanh"))
    width = first.rows
    if header.has_tensor("mm.2.weight"):
        second = header.linear("mm.2", columns=first.rows)
        steps, width = (*steps, second), second.rows
    form = ImageForm(
        projector="mlp",
        patch_size=patch,
        image_size=size,
        mean=vit.color(header, "image_mean"),
        std=vit.color(header, "image_std"),
    )
    blocks = _used_blocks(header)
    return fixed_tower(header, form, width, steps, blocks=blocks, unused=_unused(header, blocks))


def _used_blocks(header: Header) -> int:
    """The file may hold the last block or not: `block_count` counts it in either case."""
    count = vit.bounded(header, "vision.block_count", vit.MAX_WIDTH)
    layers = header.integers("vision.feature_layer")
    if len(layers) > 1:
        raise Unsupported("several feature layers side by side are not supported yet")
    used = layers[0] if layers else count - 1
    if not 1 <= used <= count or not header.has_tensor(f"v.blk.{used - 1}.attn_out.weight"):
        raise MalformedFile(f"a tower of {count} blocks, of which {used} are looked at")
    return used


def _unused(header: Header, blocks: int) -> tuple[str, ...]:
    """Of the blocks behind."""
    count = header.count("vision.block_count")
    stems = tuple(f"v.blk.{index}." for index in range(blocks, count))
    return header.names_with(stems)
