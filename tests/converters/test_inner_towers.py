"""Towers inside models' own files, as Ollama's library has them: described as their projector files are."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from converters.errors import ConversionError, MalformedFile, Unsupported
from converters.gguf import GgufFile, read_header
from converters.projectors.form import has_tower, projector_form, projector_type
from converters.projectors.registry import describe_tower
from converters.vision_plan import assess_vision
from tests.models.library_vision import NAMES, make_library_file
from tests.models.random_vision import make_projector, make_text

Files = dict[str, tuple[GgufFile, GgufFile]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """By kind, the header of the file with both and that of the projector file."""
    folder = tmp_path_factory.mktemp("inner")
    found: Files = {}
    for kind in NAMES:
        text = make_text(folder / "text.gguf", kind)
        projector = make_projector(folder / "projector.gguf", kind)
        both = make_library_file(folder / f"{kind}.gguf", kind, text, projector)
        found[kind] = header_of(both), header_of(projector)
    return found


def header_of(path: pathlib.Path) -> GgufFile:
    with path.open("rb") as file:
        return read_header(file)


def with_keys(file: GgufFile, **keys: Any) -> GgufFile:
    return replace(file, metadata=file.metadata | keys)


@pytest.mark.parametrize("kind", ["gemma3", "qwen2.5vl"])
def test_the_same_tower_is_described(files: Files, kind: str):
    both, alone = files[kind]
    expected = describe_tower(alone)
    assert has_tower(both)
    assert replace(describe_tower(both), name=expected.name) == expected


def test_pixtral_rotates_halves_there_and_breaks_rows_by_a_row_of_the_table(files: Files):
    both, alone = files["pixtral-merged"]
    found, expected = describe_tower(both), describe_tower(alone)
    assert replace(found, rotation="neighbours", name=expected.name) == expected
    tensors = {tensor.name: tensor for tensor in projector_form(both).tensors}
    table = next(each for each in both.tensors if each.name == "token_embd.weight")
    tokens = both.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    row = tensors[found.row_break]
    assert row.nbytes == 4 * 128
    assert row.offset == table.offset + tokens.index("[IMG_BREAK]") * row.nbytes


def test_a_projector_file_comes_through_untouched(files: Files):
    for _, alone in files.values():
        assert projector_form(alone) is alone


def test_llava_files_older_than_the_key_of_their_type(tmp_path: pathlib.Path):
    file = header_of(make_projector(tmp_path / "m.gguf", "mlp"))
    metadata = {key: value for key, value in file.metadata.items() if key != "clip.projector_type"}
    old = replace(file, metadata=metadata)
    assert projector_type(projector_form(old)) == "mlp"
    assert describe_tower(old) == describe_tower(file)
    other = replace(old, tensors=tuple(each for each in old.tensors if "mm.2" not in each.name))
    assert projector_type(projector_form(other)) == ""


def test_windows_that_are_not_every_nth_block_are_refused(files: Files):
    both, _ = files["qwen2.5vl"]
    key = "qwen25vl.vision.fullatt_block_indexes"
    odd = with_keys(both, **{key: np.array([0, 3], np.int32)})
    with pytest.raises(Unsupported, match="not every n-th"):
        describe_tower(odd)
    found = assess_vision(odd)
    assert not found.estimates
    assert all("not every n-th" in reason for reason in found.refusals.values())


WRONG: list[tuple[str, str, Any]] = [
    ("gemma3", "gemma3.mm.tokens_per_image", 15),
    ("gemma3", "gemma3.mm.tokens_per_image", "many"),
    ("gemma3", "gemma3.vision.image_size", -1),
    ("gemma3", "gemma3.vision.patch_size", 0),
    ("qwen2.5vl", "qwen25vl.vision.fullatt_block_indexes", "all"),
    ("qwen2.5vl", "qwen25vl.vision.fullatt_block_indexes", np.array([-1, 0], np.int32)),
    ("qwen2.5vl", "qwen25vl.vision.block_count", 1 << 30),
    ("pixtral-merged", "mistral3.spatial_merge_size", 3),
    ("pixtral-merged", "mistral3.vision.attention.head_count", "two"),
]


@pytest.mark.parametrize(("kind", "key", "value"), WRONG)
def test_what_does_not_add_up_is_refused(files: Files, kind: str, key: str, value: Any):
    with pytest.raises(ConversionError):
        describe_tower(with_keys(files[kind][0], **{key: value}))


@pytest.mark.parametrize("kind", NAMES)
def test_a_missing_tensor_is_named(files: Files, kind: str):
    both, _ = files[kind]
    needed = "v.blk.0.attn_q.weight"
    less = replace(both, tensors=tuple(each for each in both.tensors if each.name != needed))
    with pytest.raises((MalformedFile, Unsupported)):
        describe_tower(less)
