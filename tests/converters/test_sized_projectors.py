"""What the kinds for images of any size read from headers, and that hostile ones are refused by name."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from converters.errors import ConversionError, MalformedFile
from converters.gguf import GgufFile, read_header
from converters.projectors.registry import describe_tower
from converters.projectors.tower import Group, VisionShape
from converters.vision_plan import plan_vision
from tests.models.random_vision import make_projector

KINDS = ("qwen2vl", "qwen2.5vl", "qwen3vl", "pixtral", "pixtral-merged")
SAID_ALWAYS = (
    "patch_size", "embedding_length", "block_count", "attention.head_count",
    "attention.layer_norm_epsilon", "image_mean", "image_std",
)  # fmt: skip
WRONG: dict[str, tuple[Any, ...]] = {
    "patch_size": (0, 13, 1 << 10),
    "embedding_length": (0, 63, 1 << 20),
    "block_count": (0, 9, 1 << 30),
    "attention.head_count": (0, 3, 32, 1 << 12),
    "attention.layer_norm_epsilon": (0.0, float("nan")),
    "spatial_merge_size": (0, 3, 1 << 20),
    "image_min_pixels": (1 << 30,),
    "image_max_pixels": (1, 1 << 30),
    "image_mean": (np.full(3, np.inf, np.float32),),
    "image_std": (np.zeros(3, np.float32),),
}
# Beside biases and the second frame.
OPTIONAL = ("pre_ln", "post_ln", "fc1", "ffn_gate")


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    folder = tmp_path_factory.mktemp("projectors")
    return {kind: header_of(make_projector(folder / f"{kind}.gguf", kind)) for kind in KINDS}


def header_of(path: pathlib.Path) -> GgufFile:
    with path.open("rb") as file:
        return read_header(file)


def with_keys(file: GgufFile, **keys: Any) -> GgufFile:
    """`None` leaves one out."""
    said = {f"clip.vision.{key}": value for key, value in keys.items()}
    found = {key: value for key, value in (file.metadata | said).items() if value is not None}
    return replace(file, metadata=found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_has_a_role(headers: dict[str, GgufFile], kind: str):
    file = headers[kind]
    tower = describe_tower(file)
    assert tower.tensor_names() == {tensor.name for tensor in file.tensors}
    assert (tower.width, tower.embedding_length, tower.form.head_size) == (128, 64, 32)
    assert tower.form.is_grouped and not tower.tile_patches and not tower.is_bidirectional
    assert tower.most_patches * tower.form.patch_size**2 == tower.form.max_pixels
    step = tower.form.patch_size * tower.form.merge
    positions = tower.form.min_pixels // step**2, tower.form.max_pixels // step**2
    assert positions == (8, 1024 if "pixtral" in kind else 4096)


def test_what_they_look_through(headers: dict[str, GgufFile]):
    towers = {kind: describe_tower(file) for kind, file in headers.items()}
    plain, places = ("patches", "cos", "sin"), ("place_ids", "place_weights")
    assert towers["qwen2vl"].inputs == towers["pixtral"].inputs == plain
    assert towers["qwen2.5vl"].inputs == (*plain, "segments")
    assert towers["qwen3vl"].inputs == (*plain, *places)
    assert towers["qwen2.5vl"].form.window_size == 112
    assert towers["qwen3vl"].form.grid_size == 8
    assert windows(towers["qwen2.5vl"]) == [True, False, True, False]
    assert windows(towers["qwen2vl"]) == [False, False, False]
    assert [tap.block for tap in towers["qwen3vl"].taps] == [0, 1]
    assert {kind: len(tower.patches) for kind, tower in towers.items()} == {
        "qwen2vl": 2, "qwen2.5vl": 2, "qwen3vl": 2, "pixtral": 1, "pixtral-merged": 1
    }  # fmt: skip
    groups = {kind: [s for s in t.steps if isinstance(s, Group)] for kind, t in towers.items()}
    assert groups["pixtral-merged"] == [Group(4, is_interleaved=True)]
    assert groups["pixtral"] == []
    assert groups["qwen2vl"] == [Group(4)]
    assert bool(towers["pixtral"].row_break) and not towers["qwen3vl"].row_break


def windows(tower: VisionShape) -> list[bool]:
    return [block.attention.is_windowed for block in tower.blocks]


def test_a_file_may_say_its_pixels_and_windows(headers: dict[str, GgufFile]):
    said = with_keys(headers["qwen2.5vl"], image_min_pixels=4000, image_max_pixels=90000)
    form = describe_tower(with_keys(said, window_size=56, n_wa_pattern=4)).form
    assert (form.min_pixels, form.max_pixels, form.window_size) == (4000, 90000, 56)
    tower = describe_tower(with_keys(headers["qwen2.5vl"], n_wa_pattern=0))
    assert tower.form.window_size == 0
    assert tower.inputs == ("patches", "cos", "sin")


def broken(file: GgufFile) -> Iterator[GgufFile]:
    """One thing wrong with each."""
    for tensor in file.tensors:
        is_needed = tensor.name.endswith((".weight", "img_break"))
        if is_needed and not any(part in tensor.name for part in OPTIONAL):
            others = tuple(each for each in file.tensors if each is not tensor)
            yield replace(file, tensors=others)
        wide = (*tensor.shape[:-1], 2 * tensor.shape[-1])
        deep = (*tensor.shape, 2)
        for shape in (wide, deep):
            changed = replace(tensor, shape=shape)
            tensors = tuple(changed if each is tensor else each for each in file.tensors)
            yield replace(file, tensors=tensors)
    for key, values in WRONG.items():
        for value in values:
            yield with_keys(file, **{key: value})
    for key in SAID_ALWAYS:
        yield with_keys(file, **{key: None})


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_headers_are_refused(headers: dict[str, GgufFile], kind: str):
    count = 0
    for file in broken(headers[kind]):
        with pytest.raises(ConversionError):
            describe_tower(file)
        count += 1
    assert count > 100


def test_windows_out_of_range_are_refused(headers: dict[str, GgufFile]):
    for keys in ({"window_size": 20}, {"window_size": 1 << 20}, {"n_wa_pattern": None}):
        with pytest.raises(MalformedFile):
            describe_tower(with_keys(headers["qwen2.5vl"], **keys))


def test_a_run_is_planned_for_patches_and_not_for_their_square(headers: dict[str, GgufFile]):
    """16384 patches of 64 numbers; a square of them for each of two heads would be 2 GB."""
    for kind in KINDS:
        planned = plan_vision(headers[kind], "onnx-cpu")
        assert 4 << 20 < planned.run_bytes < 512 << 20
