"""What models with Mamba 2 read from headers, and what they refuse, without a file."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from converters.architectures.experts import Experts
from converters.architectures.mixers import Attention, Mamba2
from converters.architectures.parts import Absent
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


def test_a_block_of_nemotron_h_is_one_part():
    model = plan(random_header("nemotron_h_moe"), "onnx-cpu").model
    parts = [(type(block.mixer), type(block.feed_forward)) for block in model.blocks]
    mamba, attention, network = (Mamba2, Absent), (Attention, Absent), (Absent, Experts)
    assert parts == [mamba, attention, network, mamba, network]
    assert model.rope == {}
    for block in model.blocks:
        assert len(list(block.norms())) == 1


@pytest.mark.parametrize("target", ["onnx-cpu", "mlx"])
def test_a_nemotron_h_may_have_no_network_at_all(target: str):
    assert list(plan(random_header("nemotron_h", blocks=2), target).model.networks()) == []


def test_the_networks_of_nemotron_h_may_differ_in_width():
    """Each tells its own; mlx-lm's module has one for all."""
    header = random_header("nemotron_h")
    shapes = {"blk.4.ffn_up.weight": (256, 256), "blk.4.ffn_down.weight": (256, 256)}
    tensors = tuple(
        replace(each, shape=shapes.get(each.name, each.shape)) for each in header.tensors
    )
    narrow = replace(header, tensors=tensors)
    widths = [network.down.columns for network in plan(narrow, "onnx-cpu").model.networks()]
    assert widths == [512, 256]
    with pytest.raises(Unsupported, match="no blocks of several widths"):
        plan(narrow, "mlx")


@pytest.mark.parametrize("target", ["onnx-cpu", "mlx"])
def test_other_numbers_of_experts_in_each_block_are_refused(target: str):
    header = random_header("nemotron_h_moe")
    each: dict[str, Value] = {"nemotron_h_moe.expert_used_count": np.array([0, 0, 2, 0, 3])}
    with pytest.raises(Unsupported, match="another number of experts in each block"):
        plan(changed(header, each), target)


def test_tied_heads_of_nemotron_h_are_refused_on_mlx():
    header = random_header("nemotron_h")
    rest = tuple(each for each in header.tensors if each.name != "output.weight")
    with pytest.raises(Unsupported, match="no tied output"):
        plan(replace(header, tensors=rest), "mlx")
    assert plan(replace(header, tensors=rest), "onnx-cpu").model.is_tied


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
