"""Headers of adapters: what is a place in the base, what is refused, and by which name."""

from __future__ import annotations

import pathlib
import random
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from converters.adapters.convert import plan_adapter
from converters.adapters.lora import MAX_RANK, AdapterMismatch, read_lora
from converters.errors import ConversionError, MalformedFile, Unsupported
from converters.gguf import GgufFile, parse_header
from converters.targets.onnx.low_rank import AdapterLayout
from tests.converters.headers import Shapes, decoder_shapes, header
from tests.models.random_adapter import make_adapter, random_matrices
from tests.models.random_gguf import make_gguf

QUERY = "blk.1.attn_q.weight"


def pair(target: str, rows: int, columns: int, rank: int = 4) -> Shapes:
    return {f"{target}.lora_a": (rank, columns), f"{target}.lora_b": (rows, rank)}


def adapter(
    shapes: Shapes, *, architecture: str = "llama", type_name: str = "F32", **metadata: Any
) -> GgufFile:
    keys = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    } | {key.replace("__", "."): value for key, value in metadata.items()}
    return header(architecture, shapes, type_name=type_name, metadata=keys)


def planned(file: GgufFile, base: GgufFile | None = None) -> AdapterLayout:
    layout = plan_adapter(file, base or header(), "onnx-cpu").layout
    assert isinstance(layout, AdapterLayout)
    return layout


def test_the_scale_is_alpha_over_each_pairs_rank():
    shapes = pair(QUERY, 256, 256, rank=4) | pair("blk.0.ffn_down.weight", 256, 512, rank=16)
    lora = read_lora(adapter(shapes))
    assert {each.target: each.scale for each in lora.pairs} == {
        QUERY: 2.0,
        "blk.0.ffn_down.weight": 0.5,
    }
    plain = read_lora(adapter(shapes, adapter__lora__alpha=None))
    assert {each.scale for each in plain.pairs} == {1.0}


def test_parts_of_one_matrix_become_one_pair():
    shapes = pair(QUERY, 256, 256, 4) | pair("blk.1.attn_v.weight", 128, 256, 6)
    layout = planned(adapter(shapes))
    (low_rank,) = layout.low_rank.values()
    assert (low_rank.down.shape, low_rank.up.shape) == ((10, 256), (512, 10))
    assert [(part.row, part.rows, part.rank) for part in layout.parts] == [
        (0, 256, 0),
        (384, 128, 4),
    ]
    # Of two types the three stay apart, and so do the pairs.
    mixed = planned(adapter(shapes), header(types={"blk.1.attn_v.weight": "Q6_K"}))
    assert list(mixed.low_rank) == ["blk.1.attn_q", "blk.1.attn_v"]


@pytest.mark.parametrize(
    ("file", "kind", "says"),
    [
        (header(), MalformedFile, "general.type"),
        (adapter(pair(QUERY, 256, 256), adapter__type="dora"), Unsupported, "'dora'"),
        (
            adapter(
                pair(QUERY, 256, 256),
                adapter__alora__invocation_tokens=np.array([1], np.int32),
            ),
            Unsupported,
            "activated LoRA",
        ),
        (adapter(pair(QUERY, 256, 256), adapter__lora__alpha=float("nan")), MalformedFile, "alpha"),
        (adapter(pair(QUERY, 256, 256), adapter__lora__alpha="8"), MalformedFile, "alpha"),
        (adapter({}), MalformedFile, "no tensors"),
        (adapter({QUERY: (256, 256)}), Unsupported, "neither"),
        (adapter({f"{QUERY}.lora_a": (4, 256)}), MalformedFile, "no counterpart"),
        (
            adapter({f"{QUERY}.lora_a": (4, 256), f"{QUERY}.lora_b": (256, 8)}),
            MalformedFile,
            "not of one rank",
        ),
        (
            adapter({f"{QUERY}.lora_a": (256,), f"{QUERY}.lora_b": (256, 8)}),
            MalformedFile,
            "no matrix",
        ),
        (adapter(pair(QUERY, 256, 256, MAX_RANK + 1)), MalformedFile, "not of one rank"),
        (adapter(pair(QUERY, 256, 256, 32), type_name="Q8_1"), Unsupported, "type Q8_1"),
    ],
)
def test_what_no_adapter_is(file: GgufFile, kind: type[ConversionError], says: str):
    with pytest.raises(kind, match=says):
        read_lora(file)


@pytest.mark.parametrize(
    ("file", "kind", "says"),
    [
        (adapter(pair(QUERY, 256, 256), architecture="qwen2"), AdapterMismatch, "'qwen2' models"),
        (adapter(pair("blk.2.attn_q.weight", 256, 256)), AdapterMismatch, "blk.2.attn_q.weight"),
        (adapter(pair(QUERY, 512, 256)), AdapterMismatch, r"\[512, 4\].* needs \[256, 4\]"),
        (adapter(pair(QUERY, 256, 128)), AdapterMismatch, r"\[4, 128\].* needs \[4, 256\]"),
        (
            adapter({f"{QUERY}.lora_a": (2, 4, 256), f"{QUERY}.lora_b": (2, 256, 4)}),
            AdapterMismatch,
            "shape",
        ),
        (adapter(pair("token_embd.weight", 300, 256)), Unsupported, "the embedding"),
        (adapter(pair("blk.0.attn_norm.weight", 1, 256)), Unsupported, "norms"),
    ],
)
def test_what_has_no_place_in_the_base(file: GgufFile, kind: type[ConversionError], says: str):
    with pytest.raises(kind, match=says):
        planned(file)


def test_a_tied_head_is_the_embedding():
    shapes = decoder_shapes()
    del shapes["output.weight"]
    with pytest.raises(AdapterMismatch, match=r"output\.weight"):
        planned(adapter(pair("output.weight", 300, 256)), header(shapes=shapes))
    assert planned(adapter(pair("output.weight", 300, 256))).low_rank.keys() == {"output"}


def test_experts_are_refused_by_name(tmp_path: pathlib.Path):
    base = make_gguf(tmp_path / "m.gguf", architecture="mixtral", types="F32")
    read = parse_header(base.read_bytes())
    shape = next(t.shape for t in read.tensors if t.name == "blk.0.ffn_up_exps.weight")
    count, rows, columns = shape
    experts = {
        "blk.0.ffn_up_exps.weight.lora_a": (count, 4, columns),
        "blk.0.ffn_up_exps.weight.lora_b": (count, rows, 4),
    }
    with pytest.raises(Unsupported, match="of experts"):
        planned(adapter(experts), read)


def test_another_target_is_refused_by_name():
    with pytest.raises(Unsupported, match="onnx-tpu"):
        plan_adapter(adapter(pair(QUERY, 256, 256)), header(), "onnx-tpu")


def test_vectors_on_mlx_are_refused_by_name():
    base = header(metadata={"llama.pooling_type": 1})
    file = adapter(pair(QUERY, 256, 256))
    with pytest.raises(Unsupported, match="vectors"):
        plan_adapter(file, base, "mlx")
    assert planned(file, base).low_rank


def test_damaged_headers_raise_nothing_else(tmp_path: pathlib.Path):
    base = make_gguf(tmp_path / "m.gguf", types="F32", blocks=1)
    matrices = random_matrices(base, targets="attn_q", rank=2)
    whole = make_adapter(tmp_path / "a.gguf", base, matrices).read_bytes()
    end = parse_header(whole).data_offset
    chance, read = random.Random(3), parse_header(base.read_bytes())
    for _ in range(300):
        data = bytearray(whole[:end])
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(end)] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        try:
            found = parse_header(bytes(data), len(whole))
            plan_adapter(replace(found), read, "onnx-cpu")
        except ConversionError as error:
            assert str(error)
