"""Codes of experts: exact where the type has no mins, a few hundredths of a step off where it has."""

from __future__ import annotations

import numpy as np
import pytest

from converters.blocks import BLOCK_TYPES
from converters.blocks.fixed_point import LADDERS
from converters.targets.onnx.expert_weights import (
    ZeroPointed,
    coded,
    interleaved,
    packed,
    zero_pointed,
)
from converters.targets.onnx.experts import stack_form
from tests.converters.random_headers import random_header
from tests.models.block_quantiser import quantise

WITH_MINS = ("Q2_K", "Q4_1", "Q4_K", "Q5_1", "Q5_K")


def raw_blocks(type_name: str, *, mean: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(3)
    weights = (mean + generator.standard_normal((64, 1024))).astype(np.float32)
    size = BLOCK_TYPES[type_name].type_size
    return quantise(weights, type_name).reshape(-1, size)


def decoded(found: ZeroPointed, count: int) -> np.ndarray:
    """f32 [count, weights in a GGML block]."""
    centred = found.codes.astype(np.float32) - found.zeros[:, :, None]
    return (centred * found.scales[:, :, None]).reshape(count, -1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("type_name", ["Q4_0", "Q3_K", "Q8_0", "Q6_K", "Q5_0"])
def test_types_without_mins_are_exact(type_name: str, bits: int):
    block_type = BLOCK_TYPES[type_name]
    assert block_type.form is not None
    if bits < block_type.form.bits:
        pytest.skip("wider than the codes")
    raw = raw_blocks(type_name)
    found = decoded(coded(type_name, raw, bits, 16), len(raw))
    np.testing.assert_array_equal(found, block_type.dequantize(raw))


@pytest.mark.parametrize("mean", [0.0, 3.0, -3.0, 30.0])
@pytest.mark.parametrize("type_name", WITH_MINS)
def test_types_with_mins_are_off_by_a_small_part_of_a_step(type_name: str, mean: float):
    raw = raw_blocks(type_name, mean=mean)
    exact = BLOCK_TYPES[type_name].dequantize(raw)
    found = coded(type_name, raw, 8, 16)
    error = decoded(found, len(raw)) - exact
    told = np.repeat(found.errors.reshape(len(raw), -1), 16, axis=1)
    assert (np.abs(error) <= told + 1e-6 * np.abs(exact).max()).all()
    step = np.abs(BLOCK_TYPES[type_name].unpack(raw).scale).max()
    # Far from zero nothing but a requantisation to 8 bits is left.
    widest = max(0.07 * step, np.abs(exact).max() / 255)
    assert np.abs(error).max() <= widest
    if mean == 0.0:
        assert np.sqrt(np.square(error).mean()) < 0.02 * step


def test_blocks_of_one_value_and_of_none_are_kept():
    codes = np.zeros((3, 1, 32), np.uint8)
    scale = np.array([[0.0], [0.0], [1e-30]], np.float32)
    minimum = np.array([[0.5], [0.0], [2.0]], np.float32)
    found = zero_pointed(codes, scale, minimum)
    weights = (found.codes.astype(np.float32) - found.zeros[:, :, None]) * found.scales[:, :, None]
    np.testing.assert_allclose(weights[:, 0, 0], [-0.5, 0.0, -2.0], rtol=1e-6)


def test_a_group_is_coded_alike_whatever_goes_with_it():
    """Minimums near and far from zero, and below it: some fit every factor, some few, some none."""
    generator = np.random.default_rng(5)
    codes = generator.integers(0, 16, (64, 1, 16), np.uint8)
    codes[:, :, 0] = 15
    scale = generator.uniform(0.5, 2, (64, 1)).astype(np.float32)
    minimum = scale * generator.uniform(-30, 40, (64, 1)).astype(np.float32)
    exact = codes * scale[:, :, None] - minimum[:, :, None]
    together = zero_pointed(codes.copy(), scale, minimum)
    for index in range(64):
        part = slice(index, index + 1)
        alone = zero_pointed(codes[part].copy(), scale[part], minimum[part])
        for ours, theirs in zip(together[:4], alone[:4], strict=True):
            np.testing.assert_array_equal(ours[part], theirs)
    found = decoded(together, 64)
    assert (np.abs(found - exact[:, 0]).max(axis=1) <= together.errors[:, 0] + 1e-5).all()


def test_rows_alternate_and_pairs_are_packed():
    gate, up = np.full((2, 4), 1, np.uint8), np.full((2, 4), 2, np.uint8)
    rows = interleaved([gate, up])
    assert rows[:, 0].tolist() == [1, 2, 1, 2]
    codes = np.arange(1, 9, dtype=np.uint8).reshape(1, 8)
    assert packed(codes, 4).tolist() == [[0x21, 0x43, 0x65, 0x87]]


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ("Q4_0", (4, 32, False)),
        ("Q3_K", (4, 16, False)),
        ("Q4_K", (8, 32, True)),
        ("Q6_K", (8, 16, False)),
    ],
)
def test_one_form_holds_for_a_block(types: str, expected: tuple[int, int, bool]):
    tensors = [each for each in random_header("mixtral", types).tensors if "_exps" in each.name]
    form = stack_form(tensors, precise=False)
    assert (form.bits, form.block, form.has_zeros) == expected
    assert stack_form(tensors, precise=True).kind == "floats"


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ("Q4_0", (4, 32, False)),
        ("Q4_K", (8, 32, True)),
        ("Q6_K", (8, 32, True)),
        ("Q2_K", (8, 32, True)),
    ],
)
def test_cudas_operator_is_given_no_blocks_of_16(types: str, expected: tuple[int, int, bool]):
    tensors = [each for each in random_header("mixtral", types).tensors if "_exps" in each.name]
    form = stack_form(tensors, precise=False, number="float16")
    assert (form.bits, form.block, form.has_zeros) == expected


@pytest.mark.parametrize("type_name", sorted(LADDERS))
def test_blocks_that_are_joined_stay_as_near_as_they_say(type_name: str):
    raw = raw_blocks(type_name)
    exact = BLOCK_TYPES[type_name].dequantize(raw).reshape(-1, 32)
    found = coded(type_name, raw, 8, 32)
    assert found.squares is not None
    assert (
        found.scales.shape
        == found.zeros.shape
        == (len(raw), BLOCK_TYPES[type_name].block_size // 32)
    )
    joined = decoded(found, len(raw)).reshape(-1, 32)
    apart = np.abs(joined - exact)
    assert (apart.max(axis=1) <= found.errors.reshape(-1) * 1.001 + 1e-6).all()
    assert found.errors.max() <= 2 * apart.max()
    told = np.sqrt(found.squares.sum() / exact.size)
    assert np.sqrt(np.square(apart).mean()) == pytest.approx(told, rel=0.02)
    ranges = exact.max(axis=1) - exact.min(axis=1)
    assert (apart.max(axis=1) <= ranges / 25).all() and apart.any()
    assert np.array_equal(found.scales, found.scales.astype(np.float16))


def test_joined_blocks_that_fp16_cannot_hold_keep_their_scales_for_the_refusal():
    raw = raw_blocks("Q6_K")
    raw[:, 208:] = np.frombuffer(np.float16(60000).tobytes(), np.uint8)
    scales = coded("Q6_K", raw, 8, 32).scales
    assert np.isfinite(scales).all() and scales.max() > 65504
    raw[:, 208:] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    assert not np.isfinite(coded("Q6_K", raw, 8, 32).scales).all()
