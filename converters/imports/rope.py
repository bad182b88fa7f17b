"""How positions are rotated, from `config.json` to GGUF keys and factor tensors.

Formulas are those of the original implementations (transformers, `modeling_rope_utils`): "llama3"
and "longrope" become factors that divide the frequencies, "linear" and "yarn" GGUF keys.
"""

from __future__ import annotations

import math

from converters.errors import MalformedFile, Unsupported
from converters.imports.config import Config
from converters.imports.recipe import Keys, Placed, computed

_PLAIN = ("default", "")


def rope_keys(
    config: Config, keys: Keys, dimensions: int, *, base: float = 10000.0
) -> list[Placed]:
    """Writes the keys; gives the factor tensors. `dimensions` counts rotated numbers of a head.

    Raises Unsupported for a scaling that GGUF cannot say.
    """
    scaling = _scaling(config)
    base = scaling.number("rope_theta", config.number("rope_theta", base))
    if dimensions % 2 or not dimensions or base <= 0:
        raise MalformedFile(f"config.json: {dimensions} numbers rotated by the base {base}")
    keys.count("rope.dimension_count", dimensions)
    keys.number("rope.freq_base", base)
    kind = scaling.text("rope_type", scaling.text("type", ""))
    if kind in _PLAIN:
        return []
    if kind == "linear":
        keys.text("rope.scaling.type", "linear")
        keys.number("rope.scaling.factor", _factor(scaling))
        return []
    if kind == "llama3":
        return [computed("rope_freqs.weight", llama3_factors(scaling, dimensions, base))]
    if kind == "yarn":
        _yarn(config, scaling, keys)
        return []
    if kind in ("longrope", "su"):
        return _longrope(config, scaling, keys, dimensions)
    raise Unsupported(f"config.json: rope scaling {kind[:40]!r} is not supported")


def _scaling(config: Config) -> Config:
    """Newer files say `rope_parameters`; some have one such object per kind of attention."""
    found = config.part(config.first("rope_parameters", "rope_scaling"))
    return found.part("full_attention") if found.has("full_attention") else found


def local_base(config: Config, default: float) -> float:
    """The base of blocks that see a sliding window."""
    nested = config.part("rope_parameters").part("sliding_attention")
    return nested.number("rope_theta", config.number("rope_local_base_freq", default))


def _factor(scaling: Config) -> float:
    factor = scaling.number("factor")
    if factor <= 0:
        raise MalformedFile(f"config.json: a rope scaling factor of {factor}")
    return factor


def llama3_factors(scaling: Config, dimensions: int, base: float) -> list[float]:
    """Short waves stay, long ones are stretched by `factor`, those between by a mix of both."""
    factor = _factor(scaling)
    low, high = scaling.number("low_freq_factor", 1.0), scaling.number("high_freq_factor", 4.0)
    original = scaling.count("original_max_position_embeddings", 8192)
    if not 0 < low < high:
        raise MalformedFile("config.json: low_freq_factor is not below high_freq_factor")
    factors: list[float] = []
    for index in range(0, dimensions, 2):
        wave = 2 * math.pi * base ** (index / dimensions)
        turns = original / wave
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - share) / factor + share))
    return factors


def _yarn(config: Config, scaling: Config, keys: Keys) -> None:
    factor = _factor(scaling)
    for key in ("mscale", "mscale_all_dim"):
        scaling.refuse(key)
    if not scaling.flag("truncate", True):
        raise Unsupported("config.json: yarn scaling with 'truncate' off is not supported")
    keys.text("rope.scaling.type", "yarn")
    keys.number("rope.scaling.factor", factor)
    longest = config.count("max_position_embeddings")
    original = scaling.count("original_max_position_embeddings", longest)
    keys.count("rope.scaling.original_context_length", original)
    for key in ("beta_fast", "beta_slow"):
        if scaling.has(key):
            keys.number(f"rope.scaling.yarn_{key}", scaling.number(key))
    if scaling.has("attention_factor"):
        own = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
        keys.number("rope.scaling.attn_factor", scaling.number("attention_factor") / own)


def _longrope(config: Config, scaling: Config, keys: Keys, dimensions: int) -> list[Placed]:
    """Two factor tensors; the worker's context decides which holds."""
    for key in ("short_mscale", "long_mscale"):
        scaling.refuse(key)
    longest = config.count("max_position_embeddings")
    key = "original_max_position_embeddings"
    original = config.count(key, scaling.count(key, longest))
    stretch = longest / max(1, original)
    magnitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    magnitude = scaling.number("attention_factor", magnitude)
    keys.text("rope.scaling.type", "longrope")
    keys.count("rope.scaling.original_context_length", original)
    keys.number("rope.scaling.attn_factor", magnitude)
    pairs = dimensions // 2
    return [
        computed("rope_factors_long.weight", scaling.numbers("long_factor", pairs)),
        computed("rope_factors_short.weight", scaling.numbers("short_factor", pairs)),
    ]


def rope_dimensions(config: Config, head_size: int) -> int:
    """A part of each head in some models."""
    part = _scaling(config).number(
        "partial_rotary_factor", config.number("partial_rotary_factor", 1.0)
    )
    return int(head_size * part)
