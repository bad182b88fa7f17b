"""Vision towers on MLX against the same files on ONNX Runtime, which are compared with llama.cpp."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.mlx.tower import open_tower
from backends.vision.plan import TowerInputs
from tests.models.random_vision import EXACT_SIZES, make_projector, png
from tests.models.random_vision_towers import TOWERS
from tests.parity.vision_onnx import Eyes, converted_tower, opened

# Relative to the largest number. ONNX Runtime rounds activations for products with codes, MLX does not.
CLOSE = {"F32": 5e-6, "F16": 5e-6, "BF16": 5e-6, "Q8_0": 2.5e-2}


def inputs_of(eyes: Eyes, size: tuple[int, int], seed: int = 3) -> list[TowerInputs]:
    image = opened(png(*size, seed))
    return list(eyes.kind.inputs(eyes.form, eyes.plan(image), image))


def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("types", CLOSE)
@pytest.mark.parametrize("kind", TOWERS)
def test_both_runtimes_see_the_same(tmp_path: pathlib.Path, kind: str, types: str) -> None:
    path = make_projector(tmp_path / "mmproj.gguf", kind, types=types)
    eyes, tower = Eyes(converted_tower(path)), open_tower(converted_tower(path, "mlx"))
    found = []
    for seed in (3, 4):
        for inputs in inputs_of(eyes, EXACT_SIZES[kind], seed):
            found.append(tower.run(inputs))
            assert distance(found[-1], eyes.tower.run(inputs)) < CLOSE[types]
    assert distance(found[0], found[-1]) > 0.1
    if tower.artifact.has_row_break:
        assert tower.row_break is not None
        assert eyes.tower.row_break is not None
        assert distance(tower.row_break, eyes.tower.row_break) < CLOSE[types]
