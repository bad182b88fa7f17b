"""What models with Mamba 2 read from headers, and what they refuse, without a file."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from converters.architectures.mixers import Attention, Mamba2
from converters.errors import MalformedFile, Unsupported
from converters.gguf import GgufFile, Value
from converters.plan import plan
from converters.targets.mlx.layout import Layout
from tests.converters.random_headers import random_header


def changed(header: GgufFile, metadata: dict[str, Value]) -> GgufFile:
    return replace(header, metadata=header.metadata | metadata)


def test_blocks_without_kv_heads_are_recurrent():
    model = plan(random_header("granitehybrid", blocks=4), "onnx-cpu").model
    kinds = [type(block.mixer) for block in model.blocks]
    assert kinds == [Mamba2, Attention, Mamba2, Attention]
    assert model.rope == {}
    assert plan(random_header("granitehybrid-rotated"), "onnx-cpu").model.rope.keys() == {"global"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ssm.group_count", 3, "8 heads in 3 groups"),
        ("ssm.time_step_rank", 7, "512 numbers for 7 heads"),
        ("ssm.state_size", 0, "states of 0"),
        ("ssm.state_size", 16, "ssm_conv1d"),
        ("attention.head_count_kv", np.array([0, 0], np.int32), "without a block that attends"),
        ("attention.head_count_kv", np.array([2, 2], np.int32), "attn_q"),
    ],
)
def test_sizes_that_do_not_add_up_are_named(key: str, value: Value, message: str):
    with pytest.raises(MalformedFile, match=message):
        plan(changed(random_header("granitehybrid"), {f"granitehybrid.{key}": value}), "onnx-cpu")


def test_states_that_metal_cannot_divide_are_refused_there():
    """Its kernel would drop what is beyond the last whole step."""
    header = random_header("granitehybrid")
    state, heads, inner, groups = 16, 8, 512, 1
    channels = inner + 2 * groups * state
    shapes = {
        "ssm_in.weight": (inner + channels + heads, 256),
        "ssm_conv1d.weight": (channels, 4),
        "ssm_conv1d.bias": (channels,),
    }
    tensors = tuple(
        replace(each, shape=shapes.get(each.name.removeprefix("blk.0."), each.shape))
        for each in header.tensors
    )
    narrow = changed(replace(header, tensors=tensors), {"granitehybrid.ssm.state_size": state})
    with pytest.raises(Unsupported, match="states of 32"):
        plan(narrow, "mlx")


@pytest.mark.parametrize(("up", "mode"), [("Q8_0", "affine"), ("Q4_0", "")])
def test_a_shared_experts_halves_are_one_matrix_on_mlx(up: str, mode: str):
    """In codes where both have the same form, else dense, which loses nothing."""
    header = random_header("granitehybrid-mixture", "Q8_0")
    tensors = tuple(
        replace(each, type_name=up) if each.name == "blk.0.ffn_up_shexp.weight" else each
        for each in header.tensors
    )
    layout = plan(replace(header, tensors=tensors), "mlx").layout
    assert isinstance(layout, Layout)
    path = "model.layers.0.shared_mlp.input_linear"
    halves = [each for each in layout.matrices if each.path == path]
    assert [each.tensor.name for each in halves] == [
        f"blk.0.ffn_{half}_shexp.weight" for half in ("gate", "up")
    ]
    assert [each.runs[0].target for each in halves] == [0, 256]
    assert {(each.rows, each.form.mode) for each in halves} == {(512, mode)}
    assert (path in layout.quantization()) == bool(mode)
