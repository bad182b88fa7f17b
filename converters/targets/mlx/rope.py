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

Config = dict[str, object]


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


def with_longrope(config: Config, model: ModelShape, tables: dict[str, RopeTable]) -> Config:
    """For `phi3`, whose module knows no other rotation than a plain one and this, and reads only
    `long_factor`: the class for long contexts. `short_factor` is the other class, for the engine to
    put in its place where a worker's context is no longer than the artifact's original length.
    """
    recipe, table = model.rope["global"], tables["global"]
    config = config | {"rope_theta": recipe.base}
    if not recipe.factors and recipe.magnitude == 1 and recipe.scaling == "none":
        return config
    short = _factors(recipe, table.inverse_frequencies)
    long = _factors(recipe, table.long_inverse_frequencies) or short
    return config | {
        "rope_scaling": {"type": "longrope", "long_factor": long, "short_factor": short},
        "original_max_position_embeddings": _original(table, model.context_length),
    }


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
    """As `longrope`."""
    if table.long_inverse_frequencies:
        raise Unsupported("two sets of rope factors cannot be said in this config of mlx-lm")
    factors = _factors(recipe, table.inverse_frequencies)
    return {
        "type": "longrope",
        "long_factor": factors,
        "short_factor": factors,
        "original_max_position_embeddings": _original(table, context_length),
    }


def _factors(recipe: RopeRecipe, frequencies: tuple[float, ...]) -> list[float]:
    """Wavelengths relative to the plain ones."""
    plain = recipe.base ** (-2.0 * np.arange(recipe.dimensions // 2) / recipe.dimensions)
    return (plain / np.array(frequencies)).tolist() if frequencies else []


def _original(table: RopeTable, context_length: int) -> float:
    """The original length from which mlx-lm computes this magnitude, beside the model's own."""
    if table.magnitude < 1 or context_length < 2:
        raise Unsupported("this rotation cannot be said in a config of mlx-lm")
    exact = float(context_length) ** (1 / table.magnitude**2)
    return context_length if table.magnitude == 1 else exact
