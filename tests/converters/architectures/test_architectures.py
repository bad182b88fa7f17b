"""Every architecture from headers alone: all tensors find a place, and nothing odd gets through.

What the numbers come to is the matter of tests/parity.
"""

from __future__ import annotations

import contextlib
import pathlib
import re

import numpy as np
import pytest
from msgspec.structs import replace

from converters.architectures.mixers import Attention
from converters.architectures.model import ModelShape
from converters.architectures.registry import ARCHITECTURES
from converters.errors import ConversionError, MalformedFile, Unsupported
from converters.gguf import GgufFile, TensorInfo, Value
from converters.plan import plan
from converters.targets.onnx.layout import Layout
from tests.converters.random_headers import random_header
from tests.models.random_architectures import ARCHITECTURES as RANDOM_ARCHITECTURES
from tests.models.random_architectures import ENCODERS

NAMES = sorted(RANDOM_ARCHITECTURES)
OPTIONAL = re.compile(
    r"\.bias$|^output\.|rope_freqs|^token_types|^dense_|^cls\.|gate_inp_shexp|_q_norm|_k_norm"
)
STRANGE: tuple[Value, ...] = (
    *(-1, 0, 1, 3, 1 << 31, (1 << 64) - 1, True, "", "yarn", []),
    *(0.0, 5e-324, 3.4e38, float("inf"), float("nan")),
    *(np.array([], np.uint8), np.array([1, 2], np.int64), np.array([0.5, float("nan")])),
)


def placed(layout: Layout) -> set[str]:
    """Names of the tensors whose numbers `weights.bin` will hold."""
    parts = (*layout.matrices.values(), *layout.vectors.values())
    names = {source.tensor.name for part in parts for source in part.sources}
    stacks = layout.stacks.values()
    return names | {
        source.tensor.name for stack in stacks for source in (*stack.sources, *stack.biases)
    }


def elsewhere(model: ModelShape) -> set[str]:
    """Rope tables, the head of a model that gives vectors, keys that no block reads."""
    ropes = model.rope.values()
    factors = {name for each in ropes for name in (each.factors, each.long_factors) if name}
    mixers = [block.mixer for block in model.blocks]
    readings = [each.reading for each in mixers if isinstance(each, Attention) and each.reading]
    unread = {name for reading in readings for name in reading.tensor_names()}
    return factors | set(model.unused) | unread


@pytest.mark.parametrize("architecture", NAMES)
def test_every_tensor_has_its_place(architecture: str):
    header = random_header(architecture)
    planned = plan(header, "onnx-cpu")
    assert planned.skipped == ()
    assert isinstance(planned.layout, Layout)
    assert placed(planned.layout) | elsewhere(planned.model) == {
        tensor.name for tensor in header.tensors
    }
    assert bool(planned.model.encoder) == (architecture in ENCODERS)
    assert (planned.kv_bytes_per_token > 0) == (architecture not in ENCODERS)


@pytest.mark.parametrize("architecture", NAMES)
def test_a_missing_tensor_is_refused(architecture: str):
    """Unless the architecture is known without it: biases, a tied head, frequency factors …"""
    header = random_header(architecture)
    for tensor in header.tensors:
        if OPTIONAL.search(tensor.name):
            continue
        rest = tuple(other for other in header.tensors if other is not tensor)
        with pytest.raises(ConversionError):
            plan(replace(header, tensors=rest), "onnx-cpu")


@pytest.mark.parametrize("architecture", NAMES)
def test_odd_shapes_give_conversion_errors_only(architecture: str):
    header = random_header(architecture)
    for place, tensor in enumerate(header.tensors):
        for shape in ((1,), (256,), (3, 256), (256, 3), (2, 3, 256), (1 << 31, 1 << 31)):
            odd = replace(tensor, shape=shape)
            tensors = (*header.tensors[:place], odd, *header.tensors[place + 1 :])
            with contextlib.suppress(ConversionError):
                plan(replace(header, tensors=tensors), "onnx-cpu")


@pytest.mark.parametrize("architecture", NAMES)
def test_strange_metadata_gives_conversion_errors_only(architecture: str):
    header = random_header(architecture)
    prefixes = (f"{header.architecture}.", "xielu.")
    for key in [key for key in header.metadata if key.startswith(prefixes)]:
        for value in STRANGE:
            with contextlib.suppress(ConversionError):
                plan(changed(header, {key: value}), "onnx-cpu")


def changed(header: GgufFile, metadata: dict[str, Value]) -> GgufFile:
    return replace(header, metadata=header.metadata | metadata)


@pytest.mark.parametrize("architecture", NAMES)
def test_more_blocks_than_tensors_are_refused_at_once(architecture: str):
    """Nothing is made for each of a billion blocks before one of them is looked for."""
    file = random_header(architecture)
    many = changed(file, {f"{file.architecture}.block_count": 1 << 30})
    with pytest.raises(MalformedFile, match="block_count is 1073741824 in a file of"):
        plan(many, "onnx-cpu")


def test_each_is_named_in_the_read_me():
    text = (pathlib.Path(__file__).parents[3] / "README.md").read_text()
    assert {name for name in ARCHITECTURES if f"`{name}`" not in text} == set()


def test_each_is_tried_by_a_random_model():
    assert {spec.name for spec in RANDOM_ARCHITECTURES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("architecture", "metadata", "message"),
    [
        ("deepseek2", {"deepseek2.expert_group_count": 4}, "softmax experts in 4 groups"),
        ("deepseek2", {"deepseek2.expert_gating_func": 9}, "expert_gating_func 9"),
        ("qwen2vl", {"qwen2vl.rope.dimension_sections": np.array([8, 8, 8, 8])}, "four sections"),
        ("bert", {"bert.pooling_type": 7}, "pooling_type 7"),
        ("llama", {"llama.attention.causal": False}, "no pooling"),
        ("gemma3n", {"gemma3n.altup.active_idx": 1}, "stream 1 as the active one"),
        ("gemma3n", {"gemma3n.pooling_type": 1}, "gemma3n with a pooling"),
    ],
)
def test_what_is_not_carried_is_refused_by_name(
    architecture: str, metadata: dict[str, Value], message: str
):
    with pytest.raises(Unsupported, match=message):
        plan(changed(random_header(architecture), metadata), "onnx-cpu")


def test_the_last_blocks_of_gemma_3n_read_the_last_of_their_kind():
    header = random_header("gemma3n", blocks=25)
    planned = plan(header, "onnx-cpu")
    assert isinstance(planned.layout, Layout)
    assert placed(planned.layout) | elsewhere(planned.model) == {
        tensor.name for tensor in header.tensors
    }
    mixers = [block.mixer for block in planned.model.blocks]
    readings = [each.reading for each in mixers if isinstance(each, Attention)]
    assert [reading.block for reading in readings if reading] == [18, 18, 18, 18, 19]
    assert planned.kv_bytes_per_token == 20 * 2 * 2 * 64 * 4
    with pytest.raises(Unsupported, match="gemma3n: blocks with inputs of their own"):
        plan(header, "onnx-cuda")


def test_what_a_file_of_gemma_3n_may_leave_unsaid():
    """llama.cpp takes all of it for granted."""
    header = random_header("gemma3n", blocks=25)
    keys = ("altup.num_inputs", "altup.active_idx", "embedding_length_per_layer_input",
            "activation_sparsity_scale", "attention.shared_kv_layers")  # fmt: skip
    left = {f"gemma3n.{key}" for key in keys}
    bare = {key: value for key, value in header.metadata.items() if key not in left}
    assert len(bare) == len(header.metadata) - len(keys)
    found = plan(replace(header, metadata=bare), "mlx")
    assert found.model == plan(header, "mlx").model


@pytest.mark.parametrize("architecture", ["command-r", "stablelm"])
def test_norms_of_each_head_of_its_own_are_refused(architecture: str):
    header = random_header(architecture)
    norms = TensorInfo("blk.0.attn_q_norm.weight", (4, 64), "F32", 1 << 30, 1024)
    with pytest.raises(Unsupported, match="norms on q and k"):
        plan(replace(header, tensors=(*header.tensors, norms)), "onnx-cpu")


def test_the_larger_exaone_4_has_windows_and_blocks_that_do_not_rotate():
    """64 blocks, by which it is known, are too many for a random model in every run."""
    for target in ("onnx-cpu", "mlx"):
        mixers = [
            block.mixer for block in plan(random_header("exaone4", blocks=64), target).model.blocks
        ]
        assert [(each.window, each.rope) for each in mixers] == [  # pyright: ignore
            *[(4096, "global")] * 3, (0, ""),
        ] * 16  # fmt: skip


def test_blocks_that_predict_ahead_are_left_out_and_named():
    header = random_header("glm4moe")
    kept = [each for each in header.tensors if each.name.startswith("blk.1.")]
    extra = [replace(each, name=each.name.replace("blk.1.", "blk.2.")) for each in kept]
    extra.append(replace(kept[0], name="blk.2.nextn.eh_proj.weight"))
    longer = replace(header, tensors=(*header.tensors, *extra))
    ahead: dict[str, Value] = {"glm4moe.block_count": 3, "glm4moe.nextn_predict_layers": 1}
    for target in ("onnx-cpu", "mlx"):
        planned = plan(changed(longer, ahead), target)
        assert planned.model == plan(header, target).model
        assert planned.skipped == tuple(each.name for each in extra)
    with pytest.raises(Unsupported, match=r"blk\.2\.attn_norm.*no place"):
        plan(longer, "onnx-cpu")
