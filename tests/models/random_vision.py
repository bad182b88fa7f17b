"""Random models with eyes: a projector file and a text model that fit each other, and images for them.

`make_projector` writes the `mmproj` file of a kind in `random_vision_towers`, `make_text` a text model
whose vocabulary has that kind's image tokens, `png` an image. All are small and llama.cpp loads them.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from PIL import Image

from tests.models.random_gguf import make_gguf, write_metadata, write_weights
from tests.models.random_parts import Value
from tests.models.random_vision_towers import DEEPSTACK_BLOCKS, TOWERS, TowerKind, TowerShape

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class TextSide:
    """What the text model of a kind is: arguments of `make_gguf`."""

    architecture: str
    tokenizer: str = "llama"
    pre: str = "llama-bpe"
    control: tuple[str, ...] = ()
    merges: tuple[str, ...] = ()
    metadata: dict[str, Value] = dataclasses.field(default_factory=dict[str, Value])


QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>")
TILE_TOKENS = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
PIXTRAL = TextSide(
    "llama", "gpt2", "llama-bpe", control=("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
)
TEXT_SIDES: dict[str, TextSide] = {
    "gemma3": TextSide(
        "gemma3", control=("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    ),
    "mlp": TextSide("llama"),
    "idefics3": TextSide(
        "llama",
        "gpt2",
        "gpt-2",
        control=("<image>", "<fake_token_around_image>", "<global-img>", *TILE_TOKENS),
        merges=("\u010a \u010a",),  # an empty line, one token, stands before the whole image
    ),
    "internvl": TextSide("qwen2", "gpt2", "qwen2", control=("<img>", "</img>", "<IMG_CONTEXT>")),
    "qwen2vl": TextSide("qwen2vl", "gpt2", "qwen2", control=QWEN_TOKENS),
    "qwen2.5vl": TextSide("qwen2vl", "gpt2", "qwen2", control=QWEN_TOKENS),
    "qwen3vl": TextSide(
        "qwen3vl",
        "gpt2",
        "qwen2",
        control=QWEN_TOKENS,
        metadata={"qwen3vl.n_deepstack_layers": len(DEEPSTACK_BLOCKS)},
    ),
    "pixtral": PIXTRAL,
    "pixtral-merged": PIXTRAL,
}
# (width, height) of an image that needs no resizing: more than one window, no square where allowed.
EXACT_SIZES: dict[str, tuple[int, int]] = {
    "gemma3": (112, 112),
    "mlp": (112, 112),
    "idefics3": (112, 56),
    "internvl": (112, 112),
    "qwen2vl": (168, 112),
    "qwen2.5vl": (168, 140),
    "qwen3vl": (160, 128),
    "pixtral": (98, 70),
    "pixtral-merged": (140, 84),
}


def make_projector(
    path: str | Path, kind: str, *, types: str = "F32", seed: int = 0, has_newer_key: bool = False
) -> Path:
    """Write the `mmproj` file of a kind; `types` is the type of its matrices.

    `has_newer_key`: the type stands in `clip.vision.projector_type`, as in files with a tower for
    sound beside. The same arguments give the same bytes.
    """
    tower = TOWERS[kind]
    writer = GGUFWriter(Path(path), "clip")
    writer.add_name(f"random {kind} {types}")
    write_metadata(writer, projector_metadata(tower, has_newer_key=has_newer_key))
    write_weights(writer, list(tower.weights(tower.shape)), types, tower.shape.blocks, seed)
    return Path(path)


def projector_metadata(tower: TowerKind, *, has_newer_key: bool = False) -> dict[str, Value]:
    key = "clip.vision.projector_type" if has_newer_key else "clip.projector_type"
    return {
        "general.type": "mmproj",
        key: tower.projector,
        "clip.has_vision_encoder": True,
        **_sizes(tower.shape),
        **tower.metadata(tower.shape),
    }


def _sizes(shape: TowerShape) -> dict[str, Value]:
    return {
        "clip.vision.image_size": shape.image,
        "clip.vision.patch_size": shape.patch,
        "clip.vision.embedding_length": shape.width,
        "clip.vision.feed_forward_length": shape.feed_forward,
        "clip.vision.projection_dim": shape.text,
        "clip.vision.block_count": shape.blocks,
        "clip.vision.attention.head_count": shape.heads,
        "clip.vision.attention.layer_norm_epsilon": EPSILON,
    }


def make_text(path: str | Path, kind: str, *, types: str = "F32", seed: int = 0) -> Path:
    """Write the text model that `make_projector(…, kind)` was made for."""
    side = TEXT_SIDES[kind]
    return make_gguf(
        path,
        architecture=side.architecture,
        types=types,
        tokenizer=side.tokenizer,
        pre=side.pre,
        control=side.control,
        merges=side.merges,
        metadata=side.metadata,
        blocks=3,
        embedding=TOWERS[kind].shape.text,
        heads=4,
        kv_heads=2,
        feed_forward=256,
        seed=seed,
    )


def png(width: int, height: int, seed: int = 0, *, noise: float = 40.0) -> bytes:
    """A file with a gradient in every channel and noise over it; every seed another one."""
    return encoded(pixels(width, height, seed, noise))


def pixels(width: int, height: int, seed: int, noise: float) -> np.ndarray:
    """u8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    colours = generator.uniform(-160, 160, (2, 3))
    middle = generator.uniform(90, 160, 3)
    ramp = middle + (down[..., None] - 0.5) * colours[0] + (right[..., None] - 0.5) * colours[1]
    return np.clip(ramp + noise * generator.standard_normal(ramp.shape), 0, 255).astype(np.uint8)


def plain_png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """One colour, which no resizing changes."""
    return encoded(np.full((height, width, 3), colour, np.uint8))


def encoded(values: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()
