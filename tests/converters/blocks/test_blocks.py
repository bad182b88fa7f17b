"""Every block type beside its references: gguf-py's and llama.cpp's dequantisers, on any bytes and on
blocks of llama.cpp's quantiser.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import xllamacpp.xllamacpp as native
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from converters.blocks import BLOCK_TYPES, BlockType, CodedBlockType, Repacked
from converters.gguf import GGML_TYPES
from tests.models.block_quantiser import quantise

CODED = sorted(name for name, kind in BLOCK_TYPES.items() if kind.form)
WITH_MINS = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}
# The code that is stored as the implicit zero point, where a correction goes with it.
CENTRES = {"Q4_1": 8, "Q4_K": 8, "Q5_1": 16, "Q5_K": 16, "Q2_K": 2, "IQ3_S": 8, "IQ1_S": 1}
# Where each type keeps its fp16 numbers.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
    "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "IQ3_S": [0], "IQ3_XXS": [0], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ1_S": [0],
    "TQ1_0": [52], "TQ2_0": [64],
}  # fmt: skip


def random_blocks(kind: BlockType, count: int = 500) -> np.ndarray:
    """Any bytes, but finite numbers where the type keeps fp16; zeros of both signs among them."""
    chance = np.random.default_rng(3)
    raw = chance.integers(0, 256, (count, kind.type_size), dtype=np.uint8)
    for offset in HALVES.get(kind.name, []):
        halves = (chance.standard_normal(count) * 10.0 ** chance.integers(-6, 3, count)).astype(
            "<f2"
        )
        halves[:2] = (0.0, -0.0)
        raw[:, offset : offset + 2] = halves.reshape(-1, 1).view(np.uint8)
    if kind.name == "MXFP4":
        raw[:, 0] = np.minimum(raw[:, 0], 252)  # beyond that some weights overflow fp32
    if kind.name == "IQ1_M":
        raw[:, 55] &= 0xBF  # its fp16 is spread over four nibbles; this is the exponent's top bit
    return raw


def quantised_blocks(kind: BlockType) -> np.ndarray:
    weights = np.random.default_rng(5).standard_normal((64, 4096)).astype(np.float32) * 0.05
    weights[:4] = 0
    return quantise(weights, kind.name).reshape(-1, kind.type_size)


def expected(kind: BlockType, raw: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        weights = quants.dequantize(raw, GGMLQuantizationType[kind.name])
    return weights.reshape(len(raw), kind.block_size)


def llama_cpp_weights(kind: BlockType, raw: np.ndarray) -> np.ndarray:
    """By `dequantize_row_<type>`, which the wheel exports."""
    library = ctypes.CDLL(native.__file__)
    weights = np.empty((len(raw), kind.block_size), np.float32)
    name = kind.name.lower().replace("_k", "_K")
    library[f"dequantize_row_{name}"](
        ctypes.c_void_p(raw.ctypes.data),
        ctypes.c_void_p(weights.ctypes.data),
        ctypes.c_int64(weights.size),
    )
    return weights


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    """Names the worst block, not only the fact."""
    differs = found.view(np.uint32) != wanted.view(np.uint32)
    rows = np.flatnonzero(differs.any(axis=1))
    assert not len(rows), f"{len(rows)} blocks differ, the first is {rows[0]}: {found[rows[0]]}"


def reconstructed(kind: BlockType, repacked: Repacked) -> np.ndarray:
    """Weights from what a MatMulNBits node is given, in fp32: scale*(code - zero) + correction."""
    codes = repacked.codes
    bits = np.unpackbits(codes, axis=-1, bitorder="little").reshape(
        *codes.shape[:2], -1, repacked.bits
    )
    codes = np.packbits(bits, axis=-1, bitorder="little")[..., 0]
    signed = codes.astype(np.float32) - np.float32(1 << (repacked.bits - 1))
    weights = signed * repacked.scales[..., None]
    if repacked.correction is not None:
        weights = weights + repacked.correction[..., None]
    return weights.reshape(len(codes), kind.block_size)


@pytest.mark.parametrize("name", sorted(BLOCK_TYPES))
def test_sizes_are_ggmls(name: str) -> None:
    kind = BLOCK_TYPES[name]
    assert (kind.block_size, kind.type_size) == GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    assert (kind.name, kind.block_size, kind.type_size) in [
        (known.name, known.block_size, known.type_size) for known in GGML_TYPES.values()
    ]


@pytest.mark.parametrize("name", sorted(BLOCK_TYPES))
def test_dequantise_equals_the_reference_on_random_bytes(name: str) -> None:
    kind = BLOCK_TYPES[name]
    raw = random_blocks(kind)
    assert_same_bits(kind.dequantize(raw), expected(kind, raw))


@pytest.mark.parametrize("name", CODED)
def test_dequantise_equals_the_reference_on_quantised_weights(name: str) -> None:
    kind = BLOCK_TYPES[name]
    raw = quantised_blocks(kind)
    assert_same_bits(kind.dequantize(raw), expected(kind, raw))


@pytest.mark.parametrize("name", CODED)
def test_dequantise_equals_llama_cpp(name: str) -> None:
    kind = BLOCK_TYPES[name]
    for raw in (random_blocks(kind), quantised_blocks(kind)):
        found, wanted = kind.dequantize(raw), llama_cpp_weights(kind, raw)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("name", CODED)
def test_unpack_gives_codes_in_range(name: str) -> None:
    kind = BLOCK_TYPES[name]
    q, scale, minimum, sub = kind.unpack(random_blocks(kind))
    assert q.dtype == np.int16 and scale.dtype == np.float32
    assert q.shape == (len(scale), kind.block_size) and scale.shape[1] == kind.block_size // sub
    assert (minimum is not None) == (name in WITH_MINS)
    assert q.min() >= -128 and q.max() <= 127


@pytest.mark.parametrize("name", CODED)
def test_repack_shapes_are_those_of_the_form(name: str) -> None:
    kind = BLOCK_TYPES[name]
    repacked = kind.repack(random_blocks(kind, 7))
    assert kind.form is not None
    bits, block, has_correction = kind.form
    groups = kind.block_size // block
    assert (repacked.bits, repacked.block) == (bits, block)
    assert repacked.codes.dtype == np.uint8
    assert repacked.codes.shape == (7, groups, block * bits // 8)
    assert repacked.scales.shape == (7, groups)
    assert (repacked.correction is not None) == has_correction == (name in CENTRES)


@pytest.mark.parametrize("name", CODED)
def test_repacked_weights_are_bit_for_bit_those_of_the_quantiser(name: str) -> None:
    kind = BLOCK_TYPES[name]
    raw = quantised_blocks(kind)
    wanted = expected(kind, raw)
    found = reconstructed(kind, kind.repack(raw))
    assert np.array_equal(found, wanted), f"{np.count_nonzero(found != wanted)} weights differ"


@pytest.mark.parametrize("name", CODED)
def test_on_random_bytes_only_the_rounding_of_the_correction_differs(name: str) -> None:
    """`centre*s - m` needs more than 24 bits where s and m are far apart: half a unit in its last."""
    kind = BLOCK_TYPES[name]
    raw = random_blocks(kind, 4000)
    repacked = kind.repack(raw)
    wanted = expected(kind, raw)
    error = np.abs(reconstructed(kind, repacked).astype(np.float64) - wanted)
    if repacked.correction is None:
        assert not error.any()
        return
    assert isinstance(kind, CodedBlockType)
    levels = kind.levels(raw)
    assert levels.minimum is not None
    scale, minimum = np.float64(levels.scale), np.float64(levels.minimum)
    exact = CENTRES[name] * scale - minimum  # 53 bits are enough for any two fp16 exponents
    is_rounded = np.repeat(exact != repacked.correction, repacked.block, axis=1)
    assert is_rounded.any() == (name in WITH_MINS) and not error[~is_rounded].any()
    # Half a unit in the last place of C, and of the weight on either side.
    size = np.repeat(np.abs(repacked.correction), repacked.block, axis=1) + 2 * np.abs(wanted)
    assert np.all(error <= size * 2.0**-24)


@pytest.mark.parametrize("name", CODED)
def test_any_number_of_blocks_is_repacked_alike(name: str) -> None:
    """A block comes out the same whatever goes with it, and no block is no block."""
    kind = BLOCK_TYPES[name]
    raw = random_blocks(kind, 9000)
    whole = kind.repack(raw)
    tail = kind.repack(raw[8990:])
    assert np.array_equal(whole.codes[8990:], tail.codes)
    assert np.array_equal(whole.scales[8990:], tail.scales)
    assert kind.repack(raw[:0]).codes.shape[0] == 0


@pytest.mark.parametrize("name", CODED)
def test_infinite_and_missing_scales_are_no_surprise(name: str) -> None:
    kind = BLOCK_TYPES[name]
    raw = np.full((4, kind.type_size), 0xFF, np.uint8)
    raw[1] = 0x7C
    assert_same_bits(np.nan_to_num(kind.dequantize(raw)), np.nan_to_num(expected(kind, raw)))
    kind.repack(raw)


def test_floats_have_no_codes() -> None:
    for name in ("F32", "F16", "BF16"):
        kind = BLOCK_TYPES[name]
        assert kind.form is None
        with pytest.raises(TypeError, match=name):
            kind.repack(np.zeros((1, kind.type_size), np.uint8))
        with pytest.raises(TypeError, match=name):
            kind.unpack(np.zeros((1, kind.type_size), np.uint8))


def test_blocks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="Q4_K"):
        BLOCK_TYPES["Q4_K"].repack(np.zeros((3, 143), np.uint8))
