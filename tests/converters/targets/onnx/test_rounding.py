"""What fp16 takes of scales and corrections, against every weight's own error."""

from __future__ import annotations

import numpy as np
import pytest

from converters.blocks import Repacked
from converters.targets.onnx.expert_weights import ZeroPointed
from converters.targets.onnx.rounding import Rounding

BITS_AND_BLOCKS = [(2, 128), (4, 16), (4, 32), (8, 16), (8, 32)]


def narrowed(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In fp16, and what that takes of each number."""
    narrow = numbers.astype(np.float16)
    return narrow, narrow.astype(np.float64) - numbers


def assert_measured(found: Rounding, errors: np.ndarray) -> None:
    assert found.largest == pytest.approx(np.abs(errors).max(), rel=1e-6)
    assert found.squares == pytest.approx(np.square(errors).sum(), rel=1e-6)


@pytest.mark.parametrize("has_correction", [False, True])
@pytest.mark.parametrize(("bits", "block"), BITS_AND_BLOCKS)
def test_narrowed_scales_and_corrections(bits: int, block: int, has_correction: bool):
    generator = np.random.default_rng(bits * block)
    packed = generator.integers(0, 256, (40, 4, block * bits // 8), np.uint8)
    places = np.arange(0, 8, bits)
    codes = ((packed[..., None] >> places) & ((1 << bits) - 1)).reshape(40, 4, block)
    scales, shifts = generator.standard_normal((2, 40, 4)).astype(np.float32)
    (narrow, lost), (narrow_shifts, lost_shifts) = narrowed(scales), narrowed(shifts)
    found = Rounding()
    repacked = Repacked(bits, block, packed, scales, shifts if has_correction else None)
    found.add_narrowed(repacked, narrow, narrow_shifts if has_correction else None)
    errors = (codes - (1 << (bits - 1))) * lost[..., None]
    assert_measured(found, errors + lost_shifts[..., None] if has_correction else errors)


def test_narrowed_scales_of_experts():
    """Every group has its own zero point; what is known already is kept where it is larger."""
    generator = np.random.default_rng(3)
    codes = generator.integers(0, 200, (40, 4, 32), np.uint8)
    zeros = generator.integers(0, 256, (40, 4), np.uint8)
    scales = generator.standard_normal((40, 4)).astype(np.float32)
    narrow, lost = narrowed(scales)
    part = ZeroPointed(codes, scales, zeros, np.zeros_like(scales))
    found, known = Rounding(), Rounding(largest=1e3)
    found.add_expert_scales(part, narrow)
    known.add_expert_scales(part, narrow)
    assert_measured(found, (codes.astype(np.int64) - zeros[..., None]) * lost[..., None])
    assert known.largest == 1e3
    assert known.squares == found.squares
