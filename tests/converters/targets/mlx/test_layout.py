"""Layouts as data: every tensor placed, no gaps, refusals by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from msgspec.structs import replace

from converters.architectures.model import ModelShape, Temperature
from converters.architectures.registry import describe
from converters.errors import Unsupported
from converters.gguf import GgufFile
from converters.plan import assess, plan
from converters.targets.mlx.layout import Layout
from converters.targets.mlx.models.registry import FAMILIES, MIXTURES, family_of
from converters.targets.mlx.placement import plan_layout
from converters.targets.mlx.weights import halves_of_pairs
from tests.converters.headers import decoder_shapes, header
from tests.converters.random_headers import random_header


def laid_out(file: GgufFile) -> tuple[ModelShape, Layout]:
    model = describe(file)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    return model, plan_layout(model, tensors, family_of(model))


def test_arrays_fill_the_file_without_gaps_and_aligned() -> None:
    _, layout = laid_out(header(type_name="Q4_0"))
    entries = json.loads(layout.header[8:])
    assert int.from_bytes(layout.header[:8], "little") == len(layout.header) - 8
    assert len(layout.header) % 4096 == 0
    del entries["__metadata__"]
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry["data_offsets"]):
        begin, after = entry["data_offsets"]
        size = {"U32": 4, "F32": 4, "F16": 2}[entry["dtype"]]
        assert begin == end and begin % size == 0
        assert after - begin == size * int(np.prod(entry["shape"]))
        end = after
    assert len(layout.header) + end == layout.weights_bytes


def test_every_tensor_has_a_module_in_mlx_lms_names() -> None:
    model, layout = laid_out(header(type_name="Q4_0"))
    placed = {matrix.tensor.name: matrix.path for matrix in layout.matrices}
    assert placed["blk.1.attn_output.weight"] == "model.layers.1.self_attn.o_proj"
    assert placed["blk.0.ffn_gate.weight"] == "model.layers.0.mlp.gate_proj"
    assert placed["token_embd.weight"] == "model.embed_tokens"
    vectors = {part.tensor.name for part in layout.vectors if part.tensor}
    assert set(placed) | vectors == model.tensor_names()
    named = layout.quantization()
    assert named.keys() - {"group_size", "bits", "mode"} == set(placed.values())
    assert named["model.embed_tokens"] == {"group_size": 32, "bits": 4, "mode": "affine"}


def test_models_of_floats_stay_in_fp32_and_are_not_called_quantised() -> None:
    _, layout = laid_out(header(type_name="F32"))
    assert layout.number == "F32" and not layout.quantization()


def test_rows_of_pairs_become_halves() -> None:
    order = halves_of_pairs(8, 4)
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    _, layout = laid_out(header(type_name="Q4_0"))
    turned = {part.path.rsplit(".", 1)[1] for part in layout.matrices if part.head_size}
    assert turned == {"q_proj", "k_proj"}
    _, layout = laid_out(header("qwen2", type_name="Q4_0"))
    assert not any(part.head_size for part in layout.matrices)


def test_a_missing_bias_is_written_as_zeros() -> None:
    """mlx-lm's qwen2 always has the three."""
    _, layout = laid_out(header("qwen2", type_name="Q4_0"))
    zeros = [part.array.name for part in layout.vectors if part.tensor is None]
    assert len(zeros) == 6 and zeros[0] == "model.layers.0.self_attn.q_proj.bias"


def test_a_feature_that_the_module_lacks_is_refused_by_name() -> None:
    model = replace(describe(header()), temperature=Temperature(strength=0.1, length=64))
    with pytest.raises(Unsupported, match="llama model has no query temperature"):
        family_of(model)
    with pytest.raises(Unsupported, match="no logit soft cap, no query temperature"):
        family_of(replace(model, logit_softcap=30.0))


def test_an_architecture_without_a_family_is_refused_by_name() -> None:
    model = replace(describe(header()), architecture="unheard-of")
    with pytest.raises(Unsupported, match="'unheard-of' is not supported on MLX"):
        family_of(model)


def test_families_need_nothing_that_they_do_not_carry() -> None:
    for family in (*FAMILIES.values(), *MIXTURES.values()):
        assert family.needs <= family.carries


def test_a_type_without_a_form_is_refused_by_tensor() -> None:
    with pytest.raises(Unsupported, match=r"blk\.0\.ffn_up\.weight.*I8"):
        plan(header(types={"blk.0.ffn_up.weight": "I8"}), "mlx")


def test_the_plan_counts_half_the_cache_and_all_the_bytes() -> None:
    planned = plan(header(type_name="Q4_0"), "mlx")
    assert planned.kv_bytes_per_token == 2 * 2 * 2 * 64 * 2
    assert planned.artifact_bytes > planned.layout.weights_bytes == planned.resident_bytes
    shapes = [shape for shape in decoder_shapes().values() if len(shape) == 2]
    codes = sum(rows * columns * 5 // 8 for rows, columns in shapes)
    assert codes < planned.layout.weights_bytes < codes + 20000
    assert assess(header(type_name="Q4_0")).estimates["mlx"] == planned.artifact_bytes


@pytest.mark.parametrize(("window", "expected"), [(0, 2048), (100, 100)])
def test_where_the_module_has_no_window_the_context_ends_with_it(
    window: int, expected: int
) -> None:
    """Also in a file that names none."""
    file = random_header("gemma2", extra={"gemma2.attention.sliding_window": window})
    _, layout = laid_out(file)
    assert layout.context_length == expected
