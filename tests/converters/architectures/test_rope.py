"""Rope tables against the formulas written out one frequency at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from msgspec.structs import replace

from converters.architectures.model import RopeRecipe
from converters.architectures.rope import rope_table
from converters.errors import MalformedFile
from converters.plan import plan
from tests.converters.random_headers import random_header


def test_plain_frequencies():
    table = rope_table(RopeRecipe(dimensions=8, base=10000.0))
    assert table.inverse_frequencies == pytest.approx((1.0, 0.1, 0.01, 0.001), rel=1e-15)
    assert table.magnitude == 1.0


def test_linear_scaling_and_factors_both_divide():
    recipe = RopeRecipe(dimensions=4, base=100.0, scaling="linear", scale=4.0)
    table = rope_table(recipe, np.array([1.0, 2.0], np.float32))
    assert table.inverse_frequencies == pytest.approx((0.25, 0.1 / 8))


def test_yarn_keeps_fast_pairs_and_divides_slow_ones():
    recipe = RopeRecipe(
        dimensions=128, base=1e6, scaling="yarn", scale=4.0, original_context_length=32768
    )
    plain = np.array(rope_table(RopeRecipe(dimensions=128, base=1e6)).inverse_frequencies)
    table = rope_table(recipe)
    ratio = np.array(table.inverse_frequencies) / plain
    assert ratio[0] == 1.0
    assert ratio[-1] == pytest.approx(0.25)
    assert (np.diff(ratio) <= 1e-15).all()
    assert table.magnitude == pytest.approx(1 + 0.1 * math.log(4))


SECTIONS = [
    ("qwen2vl", [8, 12, 12, 0], (8, 12, 12), False),
    ("qwen2vl", [8, 12, 12], (8, 12, 12), False),
    ("qwen2vl", [8, 12, 8, 0], None, False),
    ("qwen2vl", [0, 0, 0, 0], None, False),
    ("qwen3vl", [12, 10, 10, 0], (12, 10, 10), True),
    ("qwen3vl", [11, 10, 10, 0], (11, 10, 10), True),
    ("qwen3vlmoe", [14, 10, 10, 0], None, False),
    ("qwen35", [4, 2, 2, 0], (4, 2, 2), True),
    ("glm4", [4, 6, 6, 0], (4, 6, 6), False),
]


@pytest.mark.parametrize(("architecture", "said", "sections", "is_interleaved"), SECTIONS)
def test_sections_that_cut_the_pairs_are_in_the_table(
    architecture: str,
    said: list[int],
    sections: tuple[int, int, int] | None,
    is_interleaved: bool,
):
    file = random_header(architecture)
    extra = {
        f"{architecture}.rope.dimension_sections": np.array(said),
        f"{architecture}.rope.dimension_count": {"qwen35": 16, "glm4": 32}.get(architecture, 64),
    }
    file = replace(file, metadata=file.metadata | extra)
    recipe = plan(file, "onnx-cpu").model.rope["global"]
    table = rope_table(recipe)
    assert (table.sections, table.is_interleaved) == (sections, is_interleaved)
    plain = rope_table(replace(recipe, sections=None))
    assert plain.inverse_frequencies == table.inverse_frequencies


@pytest.mark.parametrize("factors", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_factors_that_cannot_be_are_malformed(factors: list[float]):
    with pytest.raises(MalformedFile):
        rope_table(RopeRecipe(dimensions=4, base=10.0), np.array(factors, np.float32))


def test_frequencies_that_overflow_are_malformed():
    with pytest.raises(MalformedFile):
        rope_table(RopeRecipe(dimensions=512, base=1e-300, scaling="linear", scale=1e-300))
