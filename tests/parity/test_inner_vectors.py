"""A tower inside a model's own file gives the vectors of the same one in a projector file."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from backends.vision.encode import encode_image
from backends.vision.sight import Sight
from converters.errors import Unsupported
from tests.models.library_vision import make_library_file
from tests.models.random_vision import EXACT_SIZES, make_projector, make_text, png
from tests.parity.seeing import TARGETS, converted_tower, opened_tower

pytestmark = pytest.mark.parity

# Heads are rotated in another order of their numbers, which rounds otherwise.
CLOSE = 1e-4


def vectors(folder: pathlib.Path, target: str, data: bytes) -> np.ndarray:
    """All of the image's, flat."""
    tower = opened_tower(folder, target)
    sight = Sight.load(folder, tower.artifact.width)
    found = encode_image(sight.plan(data, "image 1"), sight, tower, lambda: None)
    tower.close()
    return np.frombuffer(b"".join(found), "<f4")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["gemma3", "qwen2.5vl", "pixtral-merged"])
def test_the_vectors_are_the_same(tmp_path: pathlib.Path, kind: str, target: str) -> None:
    text = make_text(tmp_path / "text.gguf", kind)
    alone = make_projector(tmp_path / "projector.gguf", kind)
    both = make_library_file(tmp_path / "both.gguf", kind, text, alone)
    image = png(*EXACT_SIZES[kind])
    expected = vectors(converted_tower(alone, target), target, image)
    found = vectors(converted_tower(both, target), target, image)
    assert len(found) == len(expected) > 0
    assert np.abs(found - expected).max() < CLOSE * np.abs(expected).max()


def test_a_kernel_over_both_frames_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    text = make_text(tmp_path / "text.gguf", "qwen3vl")
    alone = make_projector(tmp_path / "projector.gguf", "qwen3vl")
    both = make_library_file(tmp_path / "both.gguf", "qwen3vl", text, alone)
    with pytest.raises(Unsupported, match="over several frames"):
        converted_tower(both, "onnx-cpu")
