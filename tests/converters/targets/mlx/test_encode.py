"""What MLX reads out of the encoded blocks, weight by weight, beside gguf-py's dequantiser."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from converters.blocks import BLOCK_TYPES
from converters.blocks.block_type import pack_codes
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
    if name in RE_ENCODED | EXACT:
        assert np.abs(off).max() == pytest.approx(errors.largest, rel=1e-3, abs=1e-9)
    assert np.abs(off).max() <= errors.largest * 1.001 <= 3 * np.abs(off).max()
    assert np.sqrt(np.square(off).mean()) == pytest.approx(errors.rms, rel=1e-3, abs=1e-9)
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


@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "Q4_K"])
def test_bfloat16_scales_are_read_back_as_stated(name: str) -> None:
    raw = blocks(name)
    found, errors = encoded(name, raw, "BF16")
    off = np.abs(as_mlx_reads(name, found) - expected(name, raw)).max()
    assert 0.5 * errors.largest <= off <= errors.largest * 1.001
    assert off > 0


@pytest.mark.parametrize("name", ["Q6_K", "Q4_K"])
def test_slices_do_not_show(name: str) -> None:
    raw = np.tile(blocks(name), (96, 1))
    assert len(raw) * 256 > 2 * SLICE_WEIGHTS
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
