"""fp32 numbers in 16 bits and back, beside NumPy's own conversion."""

from __future__ import annotations

import numpy as np
import pytest

from converters.targets.mlx.floats import rounded, stored, widened

EVERY_HALF = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
NORMAL_HALVES = EVERY_HALF[(np.abs(EVERY_HALF) >= 2.0**-14) & np.isfinite(EVERY_HALF)]
EDGES = (65503.0, 65504.0, 65519.9, 65520.0, 6.1035156e-05, 6.1e-05, 5.9e-08, 2.9e-08, 0.0, -0.0)


def numbers(seed: int = 1) -> list[np.ndarray]:
    """Normal ones alone, ties among them, and any bits at all."""
    random = np.random.default_rng(seed)
    between = NORMAL_HALVES.astype(np.float32) * np.float32(1 + 2.0**-11)
    return [
        random.standard_normal(1 << 14).astype(np.float32),
        between[np.abs(between) < 65504],
        np.array([*EDGES, *(-edge for edge in EDGES)], np.float32),
        random.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32),
    ]


@pytest.mark.parametrize("exact", numbers(), ids=["normal", "ties", "edges", "any bits"])
def test_halves_are_numpys(exact: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = exact.astype(np.float16)
    real = ~np.isnan(exact)
    found = stored(exact, "F16")
    assert np.array_equal(found.view(np.uint16)[real], expected.view(np.uint16)[real])
    assert np.isnan(found[~real].astype(np.float32)).all()


@pytest.mark.parametrize("halves", [EVERY_HALF, NORMAL_HALVES], ids=["all", "normal"])
def test_every_half_is_widened_exactly(halves: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        expected = halves.astype(np.float32)
    assert np.array_equal(widened(halves).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("number", ["F16", "BF16", "F32"])
def test_rounding_up_and_down_reaches_the_next_number(number) -> None:
    for exact in numbers(2)[:3]:
        exact = exact[np.abs(exact) < 65504]
        above, below = (rounded(exact, "x", number, way)[1] for way in ("up", "down"))
        assert (below <= exact).all() and (exact <= above).all()
        nearest = widened(stored(exact, number))
        assert ((nearest == above) | (nearest == below)).all()
