"""What mlx-lm makes of a config's rotations, beside the tables that the ONNX engine is given."""

from __future__ import annotations

import resource
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from msgspec.structs import replace

from converters.architectures.model import ModelShape, RopeRecipe
from converters.architectures.registry import describe
from converters.architectures.rope import rope_table
from converters.artifact import RopeTable
from converters.errors import Unsupported
from converters.targets.mlx.rope import with_rope
from tests.converters.headers import header

with mock.patch.object(resource, "setrlimit"):  # mlx_lm lowers the limit of open files for good
    from mlx_lm.models.rope_utils import initialize_rope

PLAIN = RopeRecipe(dimensions=64, base=500000.0)
FACTORS = np.linspace(1, 8, 32, dtype=np.float32)
POSITIONS = 300


def model_of(recipe: RopeRecipe) -> ModelShape:
    return replace(describe(header()), rope={"global": recipe}, context_length=4096)


def rotated(config: dict[str, Any]) -> np.ndarray:
    """The pair (1, 0) of every frequency at each position: cos and sin times the magnitude."""
    rope = initialize_rope(64, config["rope_theta"], False, config.get("rope_scaling"), 4096)
    ones = mx.concatenate([mx.ones((1, 1, POSITIONS, 32)), mx.zeros((1, 1, POSITIONS, 32))], -1)
    return np.array(rope(ones))[0, 0]


def wanted(table: RopeTable) -> np.ndarray:
    angles = np.arange(POSITIONS)[:, None] * np.array(table.inverse_frequencies)
    return np.concatenate([np.cos(angles), np.sin(angles)], -1) * table.magnitude


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, None),
        ({"scaling": "linear", "scale": 4.0}, "linear"),
        ({"scaling": "yarn", "scale": 4.0, "original_context_length": 1024}, "yarn"),
        (
            {
                "scaling": "yarn",
                "scale": 4.0,
                "original_context_length": 1024,
                "yarn_log_multiplier": 0.5,
            },
            "yarn",
        ),
        ({"factors": "rope_freqs.weight"}, "longrope"),
        ({"magnitude": 1.19}, "longrope"),
        ({"factors": "rope_freqs.weight", "magnitude": 1.3}, "longrope"),
    ],
)
def test_mlx_lm_rotates_by_the_same_table(changes: dict[str, Any], kind: str | None) -> None:
    recipe = replace(PLAIN, **changes)
    table = rope_table(recipe, FACTORS if recipe.factors else None)
    config = with_rope({}, model_of(recipe), {"global": table})
    scaling: Any = config.get("rope_scaling", {})
    assert scaling.get("type") == kind
    assert np.abs(rotated(config) - wanted(table)).max() < 1e-4


def test_newer_modules_get_one_key() -> None:
    table = rope_table(PLAIN)
    begun: dict[str, object] = {"rope_parameters": {"llama_4_scaling_beta": 0.1}}
    config = with_rope(begun, model_of(PLAIN), {"global": table})
    assert config == {
        "rope_parameters": {
            "type": "default", "llama_4_scaling_beta": 0.1, "rope_theta": 500000.0,
        }
    }  # fmt: skip


def test_a_table_that_no_config_can_say_is_refused() -> None:
    recipe = replace(PLAIN, magnitude=0.5)
    with pytest.raises(Unsupported, match="rotation"):
        with_rope({}, model_of(recipe), {"global": rope_table(recipe)})


def test_a_model_without_rotation_says_nothing() -> None:
    assert with_rope({}, replace(describe(header()), rope={}), {}) == {}
