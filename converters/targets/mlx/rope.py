"""Rotations as mlx-lm's configs say them.

Its `longrope` multiplies the wavelengths by any numbers, and the rotated numbers by
√(1 + ln(longest / original) / ln(original)); so it can say every table. Where its `linear` or `yarn`
mean the same they are written, since they read better.
Source: mlx-lm, `models/rope_utils.py`.
"""

from __future__ import annotations

import numpy as np

from converters.architectures.model import ModelShape, RopeRecipe
from converters.artifact import RopeTable
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config


def with_rope(config: Config, model: ModelShape, tables: dict[str, RopeTable]) -> Config:
    """The config and what its module reads of the table "global"; the others are its family's to say.

    Newer modules read one key, `rope_parameters`, which their families have begun.
    """
    recipe = model.rope.get("global")
    if recipe is None:
        return config
    scaling = _scaling(recipe, tables["global"], model.context_length)
    begun = config.get("rope_parameters")
    if isinstance(begun, dict):
        parameters = {"type": "default"} | begun | scaling | {"rope_theta": recipe.base}
        return config | {"rope_parameters": parameters}
    config = config | {"rope_theta": recipe.base}
    return config | {"rope_scaling": scaling} if scaling else config


def _scaling(recipe: RopeRecipe, table: RopeTable, context_length: int) -> Config:
    is_plain = not recipe.factors and recipe.magnitude == 1
    if is_plain and recipe.scaling == "none":
        return {}
    if is_plain and recipe.scaling == "linear":
        return {"type": "linear", "factor": recipe.scale}
    if is_plain and recipe.scaling == "yarn" and recipe.yarn_extrapolation == 1:
        return {
            "type": "yarn",
            "factor": recipe.scale,
            "original_max_position_embeddings": recipe.original_context_length,
            "beta_fast": recipe.yarn_beta_fast,
            "beta_slow": recipe.yarn_beta_slow,
            "mscale_all_dim": recipe.yarn_log_multiplier,
        }
    return _any_table(recipe, table, context_length)


def _any_table(recipe: RopeRecipe, table: RopeTable, context_length: int) -> Config:
    """As `longrope`: wavelengths relative to the plain ones, and the length that gives the magnitude."""
    if table.magnitude < 1 or table.long_inverse_frequencies or context_length < 2:
        raise Unsupported("this rotation cannot be said in a config of mlx-lm")
    plain = recipe.base ** (-2.0 * np.arange(recipe.dimensions // 2) / recipe.dimensions)
    factors = (plain / np.array(table.inverse_frequencies)).tolist()
    original = float(context_length) ** (1 / table.magnitude**2)
    return {
        "type": "longrope",
        "long_factor": factors,
        "short_factor": factors,
        "original_max_position_embeddings": context_length if table.magnitude == 1 else original,
    }
