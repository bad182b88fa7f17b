"""What the shared parts of decoders read from headers, and what they refuse, without a file."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

from converters.architectures.mixers import Attention
from converters.architectures.model import ModelShape
from converters.architectures.registry import describe
from converters.architectures.rope import rope_table
from converters.errors import ConversionError, MalformedFile, Unsupported
from tests.converters.headers import decoder_shapes, header


def attention_of(model: ModelShape, index: int) -> Attention:
    mixer = model.blocks[index].mixer
    assert isinstance(mixer, Attention)
    return mixer


def test_a_llama_is_described_by_its_tensors():
    model = describe(header())
    attention = attention_of(model, 1)
    assert (attention.heads, attention.kv_heads, attention.head_size) == (4, 2, 64)
    assert attention.scale == pytest.approx(0.125)
    assert attention.interleaved
    assert next(iter(model.blocks[1].feed_forward.linears())).rows == 512
    assert (model.vocabulary, model.context_length, model.is_tied) == (300, 2048, False)


def test_qwen2_pairs_halves_and_has_biases():
    shapes = decoder_shapes()
    shapes["blk.0.attn_q.bias"] = (256,)
    attention = attention_of(describe(header("qwen2", shapes)), 0)
    assert not attention.interleaved
    assert attention.query is not None
    assert attention.query.bias == "blk.0.attn_q.bias"


def test_shapes_win_over_metadata():
    wrong = {"llama.feed_forward_length": 9, "llama.embedding_length": 9, "llama.vocab_size": 9}
    assert describe(header(metadata=wrong)) == describe(header())


def test_without_an_output_the_head_is_tied():
    shapes = decoder_shapes()
    del shapes["output.weight"]
    model = describe(header(shapes=shapes))
    assert model.is_tied
    assert model.output == model.embedding


@pytest.mark.parametrize(("texts", "expected"), [(280, 280), (400, 300), (0, 300)])
def test_vocabulary_is_what_has_a_row_and_a_text(texts: int, expected: int):
    tokens = [str(index) for index in range(texts)] or None
    assert describe(header(metadata={"tokenizer.ggml.tokens": tokens})).vocabulary == expected


def test_heads_may_differ_from_block_to_block():
    counts = np.array([4, 8], np.uint32)
    shapes = decoder_shapes()
    model = describe(header(shapes=shapes, metadata={"llama.attention.head_count": counts}))
    assert [attention_of(model, index).head_size for index in range(2)] == [64, 32]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.attention.causal": False}, "bidirectional"),
        ({"llama.attention.head_count": 64}, "heads of 4"),
        ({"llama.rope.scaling.type": "su", "llama.rope.scaling.factor": 2.0}, "'su'"),
        ({"general.architecture": "mamba"}, "'mamba'"),
    ],
)
def test_features_that_are_missing_here_are_refused_by_name(metadata: dict[str, Any], message: str):
    with pytest.raises(Unsupported, match=message):
        describe(header(metadata=metadata))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.block_count": 3}, r"blk\.2\.attn_q"),
        ({"llama.block_count": 0}, "block_count leaves no blocks"),
        ({"llama.block_count": 1 << 31}, "out of range"),
        ({"llama.block_count": 1 << 30}, r"block_count is 1073741824 in a file of \d+ tensors"),
        ({"llama.attention.head_count": 0}, "0 heads"),
        ({"llama.attention.head_count": 3}, "3 heads"),
        ({"llama.attention.head_count": np.array([4], np.uint32)}, "1 entries for"),
        ({"llama.attention.head_count": np.array([4.0, 4.0])}, "2 entries for"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is missing"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "not a finite"),
        ({"llama.context_length": "long"}, "context_length"),
        ({"llama.context_length": 0}, "context_length is 0"),
        ({"llama.rope.scaling.type": "yarn"}, "factor is 0"),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.freq_base": 1.0,
            },
            "freq_base is 1",
        ),
        ({"llama.rope.dimension_count": 66}, "dimension_count is 66"),
        ({"llama.rope.dimension_count": 31}, "dimension_count is 31"),
        ({"llama.rope.freq_base": 0.0}, "above zero"),
        ({"llama.rope.scaling.factor": -2.0}, "factor is -2"),
        ({"general.architecture": None}, "general.architecture"),
    ],
)
def test_what_does_not_add_up_is_malformed(metadata: dict[str, Any], message: str):
    with pytest.raises(MalformedFile, match=message):
        describe(header(metadata=metadata))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_v.weight", (63, 256)),
        ("blk.0.attn_k.weight", (192, 256)),
        ("blk.1.ffn_down.weight", (256, 256)),
        ("blk.1.ffn_norm.weight", (255,)),
        ("blk.0.attn_q.weight", (256,)),
        ("blk.0.attn_q.bias", (255,)),
        ("rope_freqs.weight", (31,)),
        ("output.weight", (300, 512)),
    ],
)
def test_shapes_that_do_not_fit_together_are_malformed(name: str, shape: tuple[int, ...]):
    with pytest.raises(MalformedFile, match=name.removesuffix(".weight")):
        describe(header(shapes=decoder_shapes() | {name: shape}, type_name="F32"))


def test_values_narrower_than_keys_are_refused():
    shapes = decoder_shapes() | {"blk.0.attn_v.weight": (64, 256)}
    with pytest.raises(Unsupported, match="values of 32 beside keys of 64"):
        describe(header(shapes=shapes))


KEYS = (
    "block_count",
    "context_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "attention.causal",
    "expert_count",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.original_context_length",
)
STRANGE = (
    *(-1, 0, 1, 3, 1 << 31, (1 << 64) - 1, True, False, "", "yarn", "none", []),
    *(0.0, -0.0, 1.0, 5e-324, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan")),
    *(np.array([], np.uint8), np.array([1, 2], np.int64), np.array([0.5, float("nan")])),
)


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
@pytest.mark.parametrize("key", KEYS)
def test_whatever_a_key_says_only_conversion_errors_come_out(key: str, scaling: str):
    """A description that comes through gives rope tables or a conversion error too."""
    common = {"llama.rope.scaling.type": scaling, "llama.rope.scaling.factor": 2.0}
    for value in STRANGE:
        with contextlib.suppress(ConversionError):
            model = describe(header(metadata=common | {f"llama.{key}": value}))
            rope_table(model.rope["global"])
