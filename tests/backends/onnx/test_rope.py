from __future__ import annotations

import math

import numpy as np

from backends.onnx.rope import rotary_tables
from converters.artifact import RopeTable


def test_angles_grow_with_the_position():
    cos, sin = rotary_tables(RopeTable(inverse_frequencies=(1.0, 0.25)), 5, 5)
    assert cos.shape == sin.shape == (5, 2)
    assert cos.dtype == np.float32
    assert cos[3, 1] == np.float32(math.cos(0.75))
    assert sin[4, 0] == np.float32(math.sin(4.0))


def test_long_factors_only_beyond_the_original_context():
    table = RopeTable(
        inverse_frequencies=(1.0,), magnitude=1.0, long_inverse_frequencies=(0.5,),
        long_magnitude=2.0, original_context_length=100,
    )  # fmt: skip
    assert [table.is_long(n) for n in (100, 101)] == [False, True]
    _, short = rotary_tables(table, 3, 100)
    _, long = rotary_tables(table, 3, 101)
    assert short[2, 0] == np.float32(math.sin(2.0))
    assert long[2, 0] == np.float32(2 * math.sin(1.0))
