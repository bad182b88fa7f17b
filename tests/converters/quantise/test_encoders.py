"""Blocks of every type beside llama.cpp's: as exact, whatever the weights look like, and decodable."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType

from converters.blocks import BLOCK_TYPES
from converters.quantise import ENCODERS
from converters.quantise.encoder import Bytes, Floats
from tests.models.block_quantiser import ggml_library

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
# Those without a search give llama.cpp's own bytes, but for ties in rounding.
SEARCHED = ("Q4_K", "Q5_K", "Q6_K")
MOST_RATIO = 1.02
COLUMNS = 2048


def drawn(shape: str) -> Floats:
    generator = np.random.default_rng(7)
    size = (192, COLUMNS)
    match shape:
        case "gaussian":
            numbers = generator.standard_normal(size)
        case "laplace":
            numbers = generator.laplace(size=size)
        case "student":
            numbers = generator.standard_t(3, size)
        case "outliers":
            numbers = generator.standard_normal(size)
            numbers[:, ::97] *= 20
        case "shifted":
            numbers = generator.standard_normal(size) + 3
        case _:  # rows of very different sizes
            numbers = (
                generator.standard_normal(size)
                * np.exp2(generator.integers(-8, 8, size[0]))[:, None]
            )
    return (0.02 * numbers).astype(np.float32)


SHAPES = ("gaussian", "laplace", "student", "outliers", "shifted", "scaled rows")


def theirs(weights: Floats, name: str) -> Bytes:
    """llama.cpp's blocks without an importance matrix."""
    encoder = ENCODERS[name]
    packed = np.empty((weights.size // encoder.block_size, encoder.type_size), np.uint8)
    pointer = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    number = GGMLQuantizationType[name].value
    rows, columns = weights.shape
    ggml_library().ggml_quantize_chunk(number, pointer, packed.ctypes.data, 0, rows, columns, None)
    return packed


def ours(weights: Floats, name: str) -> Bytes:
    return ENCODERS[name].encode(weights.reshape(-1, ENCODERS[name].block_size))


def rms_error(weights: Floats, blocks: Bytes, name: str) -> float:
    decoded = BLOCK_TYPES[name].dequantize(blocks).reshape(weights.shape)
    return float(np.sqrt(np.mean(np.square(decoded - weights, dtype=np.float64))))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANTISED)
def test_errors_are_no_larger_than_llama_cpps(name: str, shape: str) -> None:
    weights = drawn(shape)
    reference, made = theirs(weights, name), ours(weights, name)
    ratio = rms_error(weights, made, name) / rms_error(weights, reference, name)
    assert ratio < MOST_RATIO, ratio
    if name not in SEARCHED:
        assert (made == reference).mean() > 0.9999


@pytest.mark.parametrize("name", QUANTISED)
def test_ggufs_decoder_reads_the_blocks(name: str) -> None:
    weights = drawn("student")[:16]
    blocks = ours(weights, name)
    expected = quants.dequantize(blocks.reshape(16, -1), GGMLQuantizationType[name])
    np.testing.assert_array_equal(
        BLOCK_TYPES[name].dequantize(blocks).reshape(weights.shape), expected
    )


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-42, 1e-9, 3.0, -3.0, 65504.0])
def test_constant_weights_come_out_as_they_went_in(name: str, value: float) -> None:
    encoder = ENCODERS[name]
    weights = np.full((3, encoder.block_size), value, np.float32)
    decoded = BLOCK_TYPES[name].dequantize(encoder.encode(weights))
    np.testing.assert_allclose(decoded, weights, rtol=0.1, atol=1e-7)


@pytest.mark.parametrize("name", QUANTISED)
def test_one_weight_among_zeros_survives(name: str) -> None:
    encoder = ENCODERS[name]
    weights = np.zeros((2, encoder.block_size), np.float32)
    weights[0, 5], weights[1, -1] = -0.7, 40000.0
    decoded = BLOCK_TYPES[name].dequantize(encoder.encode(weights))
    for row, expected in zip(decoded, weights, strict=True):
        np.testing.assert_allclose(row, expected, atol=0.005 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_floats_are_rounded_to_the_nearest(name: str) -> None:
    weights = drawn("student").reshape(-1, 1)
    expected = quants.quantize(weights, GGMLQuantizationType[name]).reshape(len(weights), -1)
    np.testing.assert_array_equal(ENCODERS[name].encode(weights), expected.view(np.uint8))
    largest = np.full((1, 1), ENCODERS[name].largest, np.float64)
    finite = largest if np.isfinite(largest) else np.full((1, 1), 3.4e38)
    decoded = BLOCK_TYPES[name].dequantize(ENCODERS[name].encode(finite.astype(np.float32)))
    assert np.isfinite(decoded).all()
