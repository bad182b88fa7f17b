"""What the kinds of projectors read from headers, and that hostile ones are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, MalformedFile, Unsupported
from converters.gguf import GgufFile
from converters.projectors.registry import PROJECTORS, describe_tower
from converters.projectors.tower import Pool, Shuffle, Turned
from tests.converters.headers import Shapes, header

WIDTH, INNER, TEXT = 64, 96, 128
# Grids of 4 × 4 patches of 8 × 8 pixels; 2 × 2 of them become one where they do.
KEYS: dict[str, Any] = {
    "clip.block_count": None,
    "clip.context_length": None,
    "clip.attention.head_count": None,
    "clip.attention.layer_norm_rms_epsilon": None,
    "clip.has_vision_encoder": True,
    "clip.use_gelu": True,
    "clip.vision.image_size": 32,
    "clip.vision.patch_size": 8,
    "clip.vision.embedding_length": WIDTH,
    "clip.vision.feed_forward_length": INNER,
    "clip.vision.block_count": 2,
    "clip.vision.projection_dim": TEXT,
    "clip.vision.attention.head_count": 4,
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.projector.scale_factor": 2,
    "clip.vision.image_mean": np.full(3, 0.5, np.float32),
    "clip.vision.image_std": np.full(3, 0.5, np.float32),
}
FIXED_KINDS = ("gemma3", "idefics3", "internvl", "mlp")


def tower_shapes(blocks: int = 2, *, token: bool = False) -> Shapes:
    shapes: Shapes = {
        "v.patch_embd.weight": (WIDTH, 3, 8, 8),
        "v.patch_embd.bias": (WIDTH,),
        "v.position_embd.weight": (16 + token, WIDTH),
        "v.post_ln.weight": (WIDTH,),
        "v.post_ln.bias": (WIDTH,),
    }
    if token:
        shapes["v.class_embd"] = (WIDTH,)
    for index in range(blocks):
        for name, sides in {
            "ln1": (WIDTH,), "ln2": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH),
            "attn_v": (WIDTH, WIDTH), "attn_out": (WIDTH, WIDTH), "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items():  # fmt: skip
            shapes[f"v.blk.{index}.{name}.weight"] = sides
            shapes[f"v.blk.{index}.{name}.bias"] = sides[:1]
    return shapes


def projector_shapes(kind: str) -> Shapes:
    joined = 4 * WIDTH
    return {
        "gemma3": {"mm.input_projection.weight": (WIDTH, TEXT), "mm.soft_emb_norm.weight": (WIDTH,)},
        "idefics3": {"mm.model.fc.weight": (TEXT, joined)},
        "internvl": {
            "mm.model.mlp.0.weight": (joined,), "mm.model.mlp.0.bias": (joined,),
            "mm.model.mlp.1.weight": (TEXT, joined), "mm.model.mlp.1.bias": (TEXT,),
            "mm.model.mlp.3.weight": (TEXT, TEXT), "mm.model.mlp.3.bias": (TEXT,),
        },
        "mlp": {
            "mm.0.weight": (TEXT, WIDTH), "mm.0.bias": (TEXT,),
            "mm.2.weight": (TEXT, TEXT), "mm.2.bias": (TEXT,),
        },
    }[kind]  # fmt: skip


def projector(
    kind: str,
    shapes: Shapes | None = None,
    type_name: str = "F16",
    keys: dict[str, Any] | None = None,
) -> GgufFile:
    token = kind in ("internvl", "mlp")
    shapes = shapes or tower_shapes(token=token) | projector_shapes(kind)
    metadata = KEYS | {"clip.projector_type": kind} | (keys or {})
    return header("clip", shapes, type_name=type_name, metadata=metadata)


@pytest.mark.parametrize("kind", FIXED_KINDS)
def test_every_tensor_has_a_role(kind: str) -> None:
    file = projector(kind)
    tower = describe_tower(file)
    assert tower.tensor_names() == {tensor.name for tensor in file.tensors}
    assert (tower.width, tower.embedding_length) == (TEXT, WIDTH)
    assert (tower.form.image_size, tower.form.patch_size, tower.tile_patches) == (32, 8, 16)
    assert tower.inputs == ("patches",)
    assert tower.is_bidirectional == (kind == "gemma3")


def test_what_follows_the_blocks() -> None:
    assert isinstance(describe_tower(projector("gemma3")).steps[0], Pool)
    assert isinstance(describe_tower(projector("gemma3")).steps[2], Turned)
    assert describe_tower(projector("idefics3")).steps[0] == Shuffle(4, 2)
    assert describe_tower(projector("internvl")).form.max_tiles == 12


def test_llava_looks_at_the_last_block_but_one() -> None:
    assert len(describe_tower(projector("mlp")).blocks) == 1
    layers = {"clip.vision.feature_layer": np.array([2], np.int32)}
    assert len(describe_tower(projector("mlp", keys=layers)).blocks) == 2
    shapes = tower_shapes(1, token=True) | projector_shapes("mlp")
    assert len(describe_tower(projector("mlp", shapes)).blocks) == 1


def test_old_names_of_up_and_down_are_told_by_shape() -> None:
    shapes = tower_shapes() | projector_shapes("gemma3")
    for index in range(2):
        stem = f"v.blk.{index}.ffn_"
        for part in ("weight", "bias"):
            up, down = f"{stem}up.{part}", f"{stem}down.{part}"
            shapes[up], shapes[down] = shapes[down], shapes[up]
    block = describe_tower(projector("gemma3", shapes)).blocks[0]
    assert block.feed_forward.up.weight == "v.blk.0.ffn_down.weight"
    assert (block.feed_forward.up.rows, block.feed_forward.down.rows) == (INNER, WIDTH)


def _broken(kind: str) -> Iterator[GgufFile]:
    """Headers with one thing wrong each: a missing tensor, a wrong shape, a key out of range."""
    token = kind in ("internvl", "mlp")
    shapes = tower_shapes(token=token) | projector_shapes(kind)
    needed = [name for name in shapes if name.endswith("weight") and "post_ln" not in name]
    for name in needed:
        if (name.startswith("v.blk.1.") and kind == "mlp") or name == "mm.2.weight":
            continue
        yield projector(kind, {each: shapes[each] for each in shapes if each != name})
        if name != "mm.input_projection.weight":  # that side of it is the text model's
            wide = (*shapes[name][:-1], 2 * shapes[name][-1])
            yield projector(kind, shapes | {name: wide}, "F32")
        yield projector(kind, shapes | {name: (*shapes[name], 2)}, "F32")
    for key, wrong in {
        "image_size": (0, 4, 1 << 20), "patch_size": (0, 1 << 10), "embedding_length": (0, 1 << 20),
        "attention.head_count": (0, 5, 1 << 12), "block_count": (0, 3, 1 << 30),
        "attention.layer_norm_epsilon": (0.0, float("nan")), "projector.scale_factor": (3, 1 << 30),
        "image_mean": (0.5, np.zeros(2, np.float32), np.full(3, np.inf, np.float32)),
        "image_std": (np.zeros(3, np.float32),),
    }.items():  # fmt: skip
        if kind == "mlp" and key == "projector.scale_factor":
            continue
        if kind == "mlp" and key == "block_count":
            wrong = (0, 1, 4, 1 << 30)
        for value in (None, *wrong):
            if value is not None or key not in ("projector.scale_factor", "image_size"):
                yield projector(kind, keys={f"clip.vision.{key}": value})


@pytest.mark.parametrize("kind", FIXED_KINDS)
def test_hostile_headers_are_refused(kind: str) -> None:
    count = 0
    for file in _broken(kind):
        with pytest.raises(ConversionError):
            describe_tower(file)
        count += 1
    assert count > 50


def test_what_llava_cannot_do_yet_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"LLaVA 1\.6"):
        describe_tower(
            projector("mlp", keys={"clip.vision.image_grid_pinpoints": np.ones(2, "<i4")})
        )
    layers = {"clip.vision.feature_layer": np.array([1, 2], np.int32)}
    with pytest.raises(Unsupported, match="several feature layers"):
        describe_tower(projector("mlp", keys=layers))


def test_a_file_cannot_ask_for_any_number_of_tiles() -> None:
    key = "clip.vision.preproc_image_size"
    assert describe_tower(projector("idefics3", keys={key: 512})).form.longest_edge == 512
    with pytest.raises(MalformedFile, match="preproc_image_size 513"):
        describe_tower(projector("idefics3", keys={key: 513}))
    with pytest.raises(MalformedFile, match="preproc_max_tiles"):
        describe_tower(projector("internvl", keys={"clip.vision.preproc_max_tiles": 65}))


def test_no_tower_and_no_kind() -> None:
    with pytest.raises(Unsupported, match="no vision encoder"):
        describe_tower(projector("gemma3", keys={"clip.has_vision_encoder": False}))
    with pytest.raises(MalformedFile):
        describe_tower(projector("gemma3", keys={"clip.projector_type": 7}))
    assert set(PROJECTORS) >= set(FIXED_KINDS)
