"""Plans as tables: every tensor accounted for, sizes exact, refusals by name. No weights anywhere."""

from __future__ import annotations

import pytest

from converters.errors import Unsupported
from converters.plan import assess, plan
from converters.targets.onnx.layout import Layout
from tests.converters.headers import decoder_shapes, header


def test_every_tensor_is_used_or_skipped_by_rule():
    extra = {"v.blk.0.attn_q.weight": (64, 64), "blk.0.attn_rot_embd.weight": (32,)}
    planned = plan(header(shapes=decoder_shapes() | extra, type_name="F32"), "onnx-cpu")
    assert isinstance(planned.layout, Layout)
    used = {
        source.tensor.name
        for part in (*planned.layout.matrices.values(), *planned.layout.vectors.values())
        for source in part.sources
    }
    assert used == set(decoder_shapes())
    assert set(planned.skipped) == set(extra)


def test_a_tensor_without_a_place_is_refused():
    shapes = decoder_shapes() | {"blk.0.attn_q_norm.weight": (64,)}
    with pytest.raises(Unsupported, match=r"blk\.0\.attn_q_norm\.weight.*no place in llama"):
        plan(header(shapes=shapes), "onnx-cpu")


def test_other_targets_are_refused():
    with pytest.raises(Unsupported, match="onnx-tpu"):
        plan(header(), "onnx-tpu")


def test_cuda_takes_half_the_numbers():
    half, full = plan(header(), "onnx-cuda"), plan(header(), "onnx-cpu")
    assert half.kv_bytes_per_token * 2 == full.kv_bytes_per_token
    assert half.variant == "onnx-cuda-f1"
    assert half.layout.weights_bytes < full.layout.weights_bytes


def test_a_block_type_without_codes_is_refused_by_tensor():
    with pytest.raises(Unsupported, match=r"blk\.0\.ffn_up\.weight.*I8"):
        plan(header(types={"blk.0.ffn_up.weight": "I8"}), "onnx-cpu")


def test_heads_of_two_sizes_are_refused():
    shapes = decoder_shapes() | {
        f"blk.1.attn_{part}.weight": (rows, 256)
        for part, rows in (("q", 512), ("k", 256), ("v", 256))
    }
    shapes["blk.1.attn_output.weight"] = (256, 512)
    with pytest.raises(Unsupported, match=r"\[64, 128\]"):
        plan(header(shapes=shapes), "onnx-cpu")


def test_cache_bytes_count_all_blocks():
    assert plan(header(), "onnx-cpu").kv_bytes_per_token == 2 * 2 * 2 * 64 * 4


def test_resident_bytes_follow_the_packed_form():
    """Q4_0: 4 bits and, per 32 weights, an fp32 scale and block sum; the looked-up table stays out."""
    planned = plan(header(type_name="Q4_0"), "onnx-cpu")
    shapes = decoder_shapes()
    weights = sum(a[0] * a[1] for name, a in shapes.items() if len(a) == 2 and "token" not in name)
    assert planned.resident_bytes == weights * 6 // 8


def test_assess_gives_an_estimate_or_a_reason():
    found = assess(header())
    assert not found.refusals
    for runtime, target in (("onnx", "onnx-cpu"), ("mlx", "mlx")):
        planned = plan(header(), target)
        assert found.estimates[runtime] > planned.layout.weights_bytes
        memory = found.memory[runtime]
        assert memory.resident_bytes == planned.resident_bytes > 0
        assert memory.kv_bytes_per_token == planned.kv_bytes_per_token > 0
        assert memory.row_bytes == planned.row_bytes == 0
        assert memory.context_length == planned.context_length > 0
        assert memory.original_context_length == 0
    found = assess(header("mamba"))
    assert "'mamba'" in found.refusals["onnx"] and "'mamba'" in found.refusals["mlx"]
    assert not found.estimates and not found.memory


def test_assess_refuses_a_tokenizer_that_cannot_be_built():
    found = assess(header(metadata={"tokenizer.ggml.model": "rwkv"}))
    assert "rwkv" in found.refusals["onnx"]
