"""What MLX reads out of the encoded blocks, weight by weight, beside gguf-py's dequantiser."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from converters.blocks import BLOCK_TYPES, CodedBlockType
from converters.blocks.block_type import pack_codes
from converters.blocks.fixed_point import PLANNED_WEIGHTS
from converters.errors import MalformedFile, Unsupported
from converters.gguf import TensorInfo
from converters.targets.mlx.encode import SLICE_WEIGHTS, Encoded, encode
from converters.targets.mlx.floats import Errors, stored, widened
from converters.targets.mlx.forms import FORMS, Number, form_of
from tests.models.block_quantiser import quantise

COLUMNS = 512
EXACT = {
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q3_K", "IQ4_NL", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
}  # fmt: skip
RE_ENCODED = {"Q6_K", "Q2_K", "IQ2_XS", "IQ2_S", "IQ1_M"}


def tensor_of(name: str, rows: int = 1) -> TensorInfo:
    kind = BLOCK_TYPES[name]
    nbytes = rows * COLUMNS // kind.block_size * kind.type_size
    return TensorInfo("blk.0.ffn_up.weight", (rows, COLUMNS), name, 0, nbytes)


@functools.cache
def _quantised(name: str) -> np.ndarray:
    weights = np.random.default_rng(5).standard_normal((24, COLUMNS)).astype(np.float32) * 0.02
    weights[:2] = 0
    return quantise(weights, name).reshape(-1, BLOCK_TYPES[name].type_size)


def blocks(name: str) -> np.ndarray:
    return _quantised(name).copy()


def encoded(name: str, raw: np.ndarray, number: Number = "F16") -> tuple[Encoded, Errors]:
    errors = Errors()
    tensor = tensor_of(name)
    return encode(raw, tensor, form_of(tensor), number, errors), errors


def as_mlx_reads(name: str, found: Encoded) -> np.ndarray:
    """f64 [weights], computed by MLX in fp32 from what is stored."""
    form = FORMS[name]
    words = mx.array(found.codes.view(np.uint32).reshape(1, -1))
    if found.biases is None:
        scales = mx.array(found.scales.reshape(1, -1))
        read = mx.dequantize(
            words, scales, group_size=form.group, bits=4, mode=form.mode, dtype=mx.float32
        )
    else:
        parts: tuple[Any, Any] = (found.scales, found.biases)
        scales, biases = (mx.array(widened(part).reshape(1, -1)) for part in parts)
        read = mx.dequantize(words, scales, biases, group_size=form.group, bits=form.bits)
    return np.array(read, np.float64).reshape(-1)


def expected(name: str, raw: np.ndarray) -> np.ndarray:
    return quants.dequantize(raw, GGMLQuantizationType[name]).reshape(-1).astype(np.float64)


def test_every_coded_type_has_a_form() -> None:
    assert set(FORMS) == {name for name, kind in BLOCK_TYPES.items() if kind.form}


@pytest.mark.parametrize("name", sorted(FORMS))
def test_stated_errors_are_what_mlx_reads(name: str) -> None:
    raw = blocks(name)
    found, errors = encoded(name, raw)
    off = as_mlx_reads(name, found) - expected(name, raw)
    assert (errors.largest == 0) == (name in EXACT)
    if name in EXACT:
        assert not off.any()
    times = 1.5 if name in RE_ENCODED else 3
    assert np.abs(off).max() <= errors.largest * 1.001 <= times * np.abs(off).max()
    within = 0.01 if name in RE_ENCODED else 1e-3
    assert np.sqrt(np.square(off).mean()) == pytest.approx(errors.rms, rel=within, abs=1e-9)
    assert errors.count == off.size


@pytest.mark.parametrize("name", sorted(set(FORMS) - RE_ENCODED))
def test_with_fp32_scales_every_kept_code_is_exact(name: str) -> None:
    """fp16 and bf16 round nothing but scales and biases."""
    raw = blocks(name)
    found, _ = encoded(name, raw, "F32")
    wanted = expected(name, raw)
    assert np.abs(as_mlx_reads(name, found) - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("name", sorted(RE_ENCODED))
def test_re_encoding_adds_little_to_the_noise_of_the_type(name: str) -> None:
    weights = np.random.default_rng(5).standard_normal((24, COLUMNS)).astype(np.float32) * 0.02
    weights[:2] = 0  # those that `blocks` quantises
    raw = blocks(name)
    found = as_mlx_reads(name, encoded(name, raw)[0])
    own, total = (
        np.sqrt(np.square(each - weights.reshape(-1)).mean())
        for each in (expected(name, raw), found)
    )
    assert total < 1.05 * own


SUPER_SCALES = {"Q6_K": (208,), "Q2_K": (80, 82), "IQ2_XS": (0,), "IQ2_S": (0,)}


@pytest.mark.parametrize("number", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("name", sorted(RE_ENCODED))
def test_no_code_wraps_whatever_a_file_says(name: str, number: Number) -> None:
    """Scales of all sizes and signs, minimums far from the weights they belong to."""
    random = np.random.default_rng(7)
    raw = random.integers(0, 256, (4096, BLOCK_TYPES[name].type_size), np.uint8)
    sizes = np.array([0, 6e-8, 1e-6, 6e-5, 1e-3, 1, 8], np.float16)
    if name == "IQ1_M":  # d lies in the top nibbles of the scales
        raw[:, [49, 51, 53, 55]] &= 0x0F
        raw[:, 53] |= random.integers(0, 256, 4096, np.uint8) & 0xF0
        raw[:, 55] |= random.choice([0x00, 0x10, 0x80, 0x90], 4096).astype(np.uint8)
    for at in SUPER_SCALES.get(name, ()):
        raw[:, at : at + 2] = random.choice(sizes, 4096)[:, None].view(np.uint8)
    found, errors = encoded(name, raw, number)
    wanted = expected(name, raw)
    off = np.abs(as_mlx_reads(name, found) - wanted)
    assert off.max() <= errors.largest * 1.001
    # Steps are those of the ladders, and a bias lies at most a bfloat16's rounding below them.
    groups, most_codes = np.abs(wanted).reshape(-1, 32).max(axis=1), (1 << FORMS[name].bits) - 2
    ranges = np.ptp(ladders(name, raw).reshape(-1, 4), axis=1)
    steps = (ranges + groups / 128) / most_codes
    assert (off.reshape(-1, 32).max(axis=1) <= 0.7 * steps + 1e-6 * groups + 2.0**-24).all()


def ladders(name: str, raw: np.ndarray) -> np.ndarray:
    """The weights at both ends of each sub-block's levels: f32 [groups, 2 sub-blocks, 2]."""
    kind = BLOCK_TYPES[name]
    assert isinstance(kind, CodedBlockType)
    scale, minimum = kind.scales(raw)
    ends = {"Q6_K": (-32, 31), "Q2_K": (0, 3), "IQ1_M": (-9, 9)}.get(name, (-43, 43))
    found = scale[..., None] * np.array(ends, np.float32)
    return (found if minimum is None else found - minimum[..., None]).reshape(-1, 2, 2)


@pytest.mark.parametrize("name", ["Q6_K", "Q2_K", "IQ1_M"])
def test_the_widest_sub_block_keeps_its_codes(name: str) -> None:
    raw = blocks(name)
    found = as_mlx_reads(name, encoded(name, raw)[0])
    off = np.abs(found - expected(name, raw)).reshape(-1, 2, 16).max(axis=2)
    wide = np.ptp(ladders(name, raw), axis=2)
    is_widest = wide[:, 0] > wide[:, 1]
    step = wide.max(axis=1) / ((1 << FORMS[name].bits) - 4)
    assert np.quantile(off[is_widest, 0] / step[is_widest], 0.5) < 0.07
    assert np.quantile(off[is_widest, 1] / step[is_widest], 0.5) > 0.3


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "Q4_K"])
def test_bfloat16_scales_are_read_back_as_stated(name: str) -> None:
    raw = blocks(name)
    found, errors = encoded(name, raw, "BF16")
    off = np.abs(as_mlx_reads(name, found) - expected(name, raw)).max()
    assert 0.5 * errors.largest <= off <= errors.largest * 1.001
    assert off > 0


@pytest.mark.parametrize("name", ["Q6_K", "Q4_K"])
def test_slices_do_not_show(name: str) -> None:
    raw = np.tile(blocks(name), (192, 1))
    assert len(raw) * 256 > 2 * max(SLICE_WEIGHTS, PLANNED_WEIGHTS)
    whole, _ = encoded(name, raw)
    tail, _ = encoded(name, raw[-48:])
    assert np.array_equal(whole.codes[-len(tail.codes) :], tail.codes)
    assert np.array_equal(whole.scales[-len(tail.scales) :], tail.scales)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_one_stream_of_bits(bits: int) -> None:
    codes = np.random.default_rng(1).integers(0, 1 << bits, 640).astype(np.uint8)
    stream = np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits].reshape(-1)
    wanted = np.packbits(stream, bitorder="little")
    assert np.array_equal(pack_codes(codes.copy(), bits), wanted)


def test_scales_that_are_no_numbers_are_refused_by_tensor() -> None:
    raw = blocks("Q4_0")
    raw[3, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    with pytest.raises(MalformedFile, match=r"blk\.0\.ffn_up\.weight"):
        encoded("Q4_0", raw)
    raw = blocks("MXFP4")
    raw[3, 0] = 0xFF
    with pytest.raises(MalformedFile, match=r"blk\.0\.ffn_up\.weight"):
        encoded("MXFP4", raw)


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
def test_what_fp16_cannot_hold_is_refused_by_tensor(name: str) -> None:
    raw = blocks(name)
    at = 0 if name == "Q8_0" else 208
    raw[:, at : at + 2] = np.frombuffer(np.float16(60000).tobytes(), np.uint8)
    with pytest.raises(Unsupported, match=r"blk\.0\.ffn_up\.weight.*F16"):
        encoded(name, raw)


def test_nvfp4_scales_mean_what_ggml_reads() -> None:
    """Their sign does not count and 0x7F is zero."""
    raw = blocks("NVFP4")
    raw[:, 0] |= 0x80
    raw[:, 1] = 0x7F
    found, _ = encoded("NVFP4", raw)
    assert np.array_equal(as_mlx_reads("NVFP4", found), expected("NVFP4", raw))


def test_bfloat16_rounds_to_nearest_even() -> None:
    numbers = np.array([1.0, 1.00390625, 1.01171875, -3.14159, 0.0], np.float32)
    theirs = np.array(mx.array(numbers).astype(mx.bfloat16).astype(mx.float32))
    assert np.array_equal(widened(stored(numbers, "BF16")), theirs)
