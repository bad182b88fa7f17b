"""The kinds of vision towers with their projectors, as pure data: tensors and metadata of `clip` files.

Names and keys are those that llama.cpp's loader asks for. Sizes are small, layouts the real ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from tests.models.random_parts import Value, Weight, bias, layer_norm, norm
from tests.models.random_vision_parts import TowerShape, blocks, linear, patches, place_table

HALF: Value = [0.5, 0.5, 0.5]
CLIP_MEAN: Value = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD: Value = [0.26862954, 0.26130258, 0.27577711]
DEEPSTACK_BLOCKS = (0, 1)
SPREAD = 1.0  # of the vectors that a projector gives: about that of an embedding table


@dataclasses.dataclass(frozen=True)
class TowerKind:
    """`projector` is `clip.projector_type`; metadata keys are whole ones."""

    projector: str
    shape: TowerShape
    weights: Callable[[TowerShape], Iterator[Weight]]
    metadata: Callable[[TowerShape], dict[str, Value]]


def gemma3_weights(shape: TowerShape) -> Iterator[Weight]:
    yield from patches(shape, has_bias=True)
    yield place_table(shape, shape.places)
    yield from blocks(shape)
    yield from layer_norm("v.", "post_ln", shape.width)
    yield norm("mm.soft_emb_norm.weight", shape.width)
    # Stored as it is multiplied from the right, which llama.cpp cannot do with blocks.
    size, std = (shape.width, shape.text), SPREAD / math.sqrt(shape.width)
    yield Weight("mm.input_projection.weight", size, std, is_never_coded=True)


def mlp_weights(shape: TowerShape) -> Iterator[Weight]:
    """CLIP's tower as old files have it: the names of the two feed-forward matrices are swapped."""
    yield Weight("v.class_embd", (shape.width,), 1.0, is_matrix=False)
    yield from patches(shape)
    yield place_table(shape, shape.places + 1)
    yield from layer_norm("v.", "pre_ln", shape.width)
    yield from blocks(shape, up="ffn_down", down="ffn_up")
    yield from linear("mm.0", shape.text, shape.width)
    yield from linear("mm.2", shape.text, shape.text)


def idefics3_weights(shape: TowerShape) -> Iterator[Weight]:
    yield from patches(shape, has_bias=True)
    yield place_table(shape, shape.places)
    yield from blocks(shape)
    yield from layer_norm("v.", "post_ln", shape.width)
    yield from linear("mm.model.fc", shape.text, shape.width * shape.merge**2, has_bias=False)


def internvl_weights(shape: TowerShape) -> Iterator[Weight]:
    merged = shape.width * shape.merge**2
    yield Weight("v.class_embd", (shape.width,), 1.0, is_matrix=False)
    yield from patches(shape, has_bias=True)
    yield place_table(shape, shape.places + 1)
    yield from blocks(shape, has_scales=True)
    yield from layer_norm("mm.model.mlp.", "0", merged)
    yield from linear("mm.model.mlp.1", shape.text, merged)
    yield from linear("mm.model.mlp.3", shape.text, shape.text)


def two_frames(shape: TowerShape, *, has_bias: bool = False) -> Iterator[Weight]:
    """Qwen's convolution over two frames, a matrix for each; an image is both."""
    yield from patches(shape, has_bias=has_bias)
    yield from patches(shape, suffix="weight.1")


def qwen_merger(shape: TowerShape) -> Iterator[Weight]:
    merged = shape.width * shape.merge**2
    yield from linear("mm.0", merged, merged)
    yield from linear("mm.2", shape.text, merged)


def qwen2vl_weights(shape: TowerShape) -> Iterator[Weight]:
    yield from two_frames(shape)
    yield from blocks(shape)
    yield from layer_norm("v.", "post_ln", shape.width)
    yield from qwen_merger(shape)


def qwen25vl_weights(shape: TowerShape) -> Iterator[Weight]:
    yield from two_frames(shape)
    yield from blocks(shape, has_norm_bias=False, is_gated=True)
    yield norm("v.post_ln.weight", shape.width)
    yield from qwen_merger(shape)


def qwen3vl_weights(shape: TowerShape) -> Iterator[Weight]:
    merged = shape.width * shape.merge**2
    yield from two_frames(shape, has_bias=True)
    yield place_table(shape, shape.places)
    yield from blocks(shape, is_fused=True)
    yield from layer_norm("v.", "post_ln", shape.width)
    yield from qwen_merger(shape)
    for index in DEEPSTACK_BLOCKS:
        prefix = f"v.deepstack.{index}."
        yield from layer_norm(prefix, "norm", merged)
        yield from linear(f"{prefix}fc1", merged, merged)
        yield from linear(f"{prefix}fc2", shape.text, merged, gain=0.5)


def pixtral_weights(shape: TowerShape) -> Iterator[Weight]:
    """The newer ones merge 2 × 2 patches after a norm."""
    yield from patches(shape)
    yield norm("v.pre_ln.weight", shape.width)
    yield from blocks(shape, has_norm_bias=False, has_bias=False, is_gated=True)
    has_bias = shape.merge == 1
    if not has_bias:
        yield norm("mm.input_norm.weight", shape.width)
        merged = shape.width * shape.merge**2
        yield from linear("mm.patch_merger", shape.width, merged, has_bias=False)
    yield from linear("mm.1", shape.text, shape.width, has_bias=has_bias)
    yield from linear("mm.2", shape.text, shape.text, has_bias=has_bias)
    yield bias("v.token_embd.img_break", shape.text, SPREAD)


def siglip_numbers(_shape: TowerShape) -> dict[str, Value]:
    return {"clip.use_gelu": True, "clip.vision.image_mean": HALF, "clip.vision.image_std": HALF}


def clip_numbers(_shape: TowerShape) -> dict[str, Value]:
    return {"clip.vision.image_mean": CLIP_MEAN, "clip.vision.image_std": CLIP_STD}


def mlp_metadata(shape: TowerShape) -> dict[str, Value]:
    """No word on the activation: that means quick GELU."""
    return clip_numbers(shape) | {"clip.has_llava_projector": True}


def idefics3_metadata(shape: TowerShape) -> dict[str, Value]:
    return siglip_numbers(shape) | {
        "clip.vision.projector.scale_factor": shape.merge,
        "clip.vision.preproc_image_size": 2 * shape.image,
    }


def internvl_metadata(shape: TowerShape) -> dict[str, Value]:
    return clip_numbers(shape) | {
        "clip.use_gelu": True,
        "clip.vision.projector.scale_factor": shape.merge,
        "clip.vision.preproc_max_tiles": 4,
    }


def qwen25vl_metadata(shape: TowerShape) -> dict[str, Value]:
    """The window's side is 112 pixels, whatever a file says."""
    own: dict[str, Value] = {"clip.use_silu": True, "clip.vision.n_wa_pattern": 2}
    return clip_numbers(shape) | own


def qwen3vl_metadata(shape: TowerShape) -> dict[str, Value]:
    return siglip_numbers(shape) | {
        "clip.vision.spatial_merge_size": shape.merge,
        "clip.vision.is_deepstack_layers": [
            index in DEEPSTACK_BLOCKS for index in range(shape.blocks)
        ],
    }


def pixtral_metadata(shape: TowerShape) -> dict[str, Value]:
    own: dict[str, Value] = {"clip.use_silu": True}
    if shape.merge > 1:
        own["clip.vision.spatial_merge_size"] = shape.merge
    return clip_numbers(shape) | own


SQUARE = TowerShape()
TOWERS: dict[str, TowerKind] = {
    "gemma3": TowerKind(
        "gemma3",
        dataclasses.replace(SQUARE, patch=7, merge=4),
        gemma3_weights,
        siglip_numbers,
    ),
    "mlp": TowerKind("mlp", dataclasses.replace(SQUARE, merge=1), mlp_weights, mlp_metadata),
    "idefics3": TowerKind(
        "idefics3", dataclasses.replace(SQUARE, image=56), idefics3_weights, idefics3_metadata
    ),
    "internvl": TowerKind("internvl", SQUARE, internvl_weights, internvl_metadata),
    "qwen2vl": TowerKind("qwen2vl_merger", SQUARE, qwen2vl_weights, clip_numbers),
    "qwen2.5vl": TowerKind(
        "qwen2.5vl_merger",
        dataclasses.replace(SQUARE, blocks=4),
        qwen25vl_weights,
        qwen25vl_metadata,
    ),
    "qwen3vl": TowerKind(
        "qwen3vl_merger",
        dataclasses.replace(SQUARE, patch=16, image=128),
        qwen3vl_weights,
        qwen3vl_metadata,
    ),
    "pixtral": TowerKind(
        "pixtral", dataclasses.replace(SQUARE, merge=1), pixtral_weights, pixtral_metadata
    ),
    "pixtral-merged": TowerKind("pixtral", SQUARE, pixtral_weights, pixtral_metadata),
}
