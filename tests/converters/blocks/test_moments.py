"""Sums in the codes' own bytes beside sums in 64-bit integers, at the codes that overflow first."""

import numpy as np
import pytest

from converters.blocks.block_type import pack_codes
from converters.blocks.moments import moments_of, moments_of_nibbles


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("top", [1, 3, 15, 16, 31, 255])
def test_moments_are_exact(top: int, size: int) -> None:
    codes = np.random.default_rng(top).integers(0, top + 1, (40, size), dtype=np.uint8)
    codes[0], codes[1] = top, 0
    wide = codes.astype(np.int64)
    found = [moments_of(codes, size, top)]
    if top <= 15:
        found.append(moments_of_nibbles(pack_codes(codes.copy(), 4), size))
    for moments in found:
        assert np.array_equal(moments.sums, wide.sum(axis=1))
        assert np.array_equal(moments.squares, np.square(wide).sum(axis=1))
