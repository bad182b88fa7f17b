"""Rope tables: from a recipe to inverse frequencies, in float64, as llama.cpp defines them.

Sources: `ggml_rope_cache_init` and `rope_yarn` (ggml-cpu), `llama_context` for the magnitudes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from converters.architectures.model import RopeRecipe
from converters.artifact import RopeTable
from converters.errors import MalformedFile

Frequencies = npt.NDArray[np.float64]


def rope_table(
    recipe: RopeRecipe,
    factors: npt.NDArray[np.float32] | None = None,
    long_factors: npt.NDArray[np.float32] | None = None,
) -> RopeTable:
    """The factors are the numbers of the tensors that the recipe names. Raises MalformedFile."""
    with np.errstate(all="ignore"):
        short = inverse_frequencies(recipe, factors)
        long = None if long_factors is None else inverse_frequencies(recipe, long_factors)
    found = [short] if long is None else [short, long]
    if not (np.isfinite(found).all() and math.isfinite(magnitude(recipe))):
        raise MalformedFile("the rope frequencies are not finite numbers")
    table = RopeTable(
        inverse_frequencies=tuple(short.tolist()),
        magnitude=magnitude(recipe),
        sections=recipe.sections,
        is_interleaved=recipe.sections is not None and recipe.has_interleaved_sections,
    )
    if long is None:
        return table
    return replace(
        table,
        long_inverse_frequencies=tuple(long.tolist()),
        long_magnitude=table.magnitude,
        original_context_length=recipe.original_context_length,
    )


def inverse_frequencies(
    recipe: RopeRecipe, factors: npt.NDArray[np.float32] | None = None
) -> Frequencies:
    """base^(-2i/dimensions), i < dimensions/2; divided by the factors; scaled."""
    pairs = np.arange(recipe.dimensions // 2, dtype=np.float64)
    plain = recipe.base ** (-2.0 * pairs / recipe.dimensions)
    if factors is not None:
        plain = _divided(plain, factors)
    if recipe.scaling == "linear":
        return plain / recipe.scale
    if recipe.scaling == "yarn":
        kept = _yarn_ramp(recipe, pairs) * recipe.yarn_extrapolation
        return plain / recipe.scale * (1.0 - kept) + plain * kept
    return plain


def _divided(plain: Frequencies, factors: npt.NDArray[np.float32]) -> Frequencies:
    if factors.shape != plain.shape:
        raise MalformedFile(f"{factors.size} rope factors for {plain.size} frequencies")
    if not (factors > 0).all():
        raise MalformedFile("a rope factor is not a positive number")
    return plain / factors.astype(np.float64)


def _yarn_ramp(recipe: RopeRecipe, pairs: Frequencies) -> Frequencies:
    """1 where a pair keeps its frequency, 0 where it is divided by the scale."""

    def pair_of(rotations: float) -> np.float64:
        turns = np.float64(recipe.original_context_length) / (rotations * 2 * math.pi)
        return recipe.dimensions * np.log(turns) / (2 * np.log(recipe.base))

    low = max(0.0, np.floor(pair_of(recipe.yarn_beta_fast)))
    high = min(recipe.dimensions - 1.0, np.ceil(pair_of(recipe.yarn_beta_slow)))
    return 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)


def magnitude(recipe: RopeRecipe) -> float:
    """What cos and sin are multiplied by."""
    if recipe.scaling != "yarn" or not recipe.yarn_extrapolation or recipe.scale <= 1.0:
        return recipe.magnitude
    own, cancelled = (
        1.0 + 0.1 * strength * math.log(recipe.scale)
        for strength in (1.0, recipe.yarn_log_multiplier)
    )
    return recipe.magnitude * own / cancelled if cancelled else math.inf
