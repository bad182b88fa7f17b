"""Reading how positions are rotated: base, scaling, factor tensors.

Source: llama.cpp, `llama_model::load_hparams` (rope keys), `get_rope_factors` and the magnitudes in
`llama_context`: yarn's own 1 + 0.1 ln(factor), divided by its counterpart for `yarn_log_multiplier`.
"""

from __future__ import annotations

from msgspec.structs import replace

from converters.architectures.decoder import context_length
from converters.architectures.header import Header
from converters.architectures.model import RopeRecipe
from converters.errors import MalformedFile, Unsupported

SHORT_FACTORS = "rope_factors_short.weight"
LONG_FACTORS = "rope_factors_long.weight"


# `llama_model_rope_type`: IMROPE; all others that say sections have them in blocks.
INTERLEAVED_SECTIONS = frozenset({"qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe"})


def rope_recipe(header: Header, head_size: int) -> RopeRecipe:
    """The model's one table, from its metadata. Raises Unsupported for scalings not known here."""
    dimensions = header.count("rope.dimension_count", head_size)
    if dimensions % 2 or not 0 < dimensions <= head_size:
        raise MalformedFile(f"{header.architecture}.rope.dimension_count is {dimensions}")
    recipe = RopeRecipe(
        dimensions=dimensions,
        base=header.positive("rope.freq_base", 10000.0),
        factors=header.optional_vector("rope_freqs.weight", dimensions // 2),
        magnitude=header.positive("rope.scaling.attn_factor", 1.0),
        sections=_sections(header, dimensions // 2),
        has_interleaved_sections=header.architecture in INTERLEAVED_SECTIONS,
    )
    if header.has_tensor(LONG_FACTORS):
        return _longrope(header, recipe)
    return _scaled(header, recipe)


def _sections(header: Header, pairs: int) -> tuple[int, int, int] | None:
    """Of vision models (`rope.dimension_sections`: time, row, column, a fourth that is 0).

    Positions of text are the same in all of them, so that theirs is the ordinary rotation. Sections
    that do not cut the pairs are left out: text needs none, and images are refused without.
    """
    found = header.integers("rope.dimension_sections")
    if any(found[3:]):
        raise Unsupported(f"{header.architecture}: rotation by four sections is not supported")
    if len(found) < 3 or not all(found[:3]):
        return None
    time, row, column = found[:3]
    total = time + row + column
    # Interleaved ones may leave pairs over, which are time's.
    fits = total <= pairs if header.architecture in INTERLEAVED_SECTIONS else total == pairs
    return (time, row, column) if fits else None


def plain_recipe(header: Header, head_size: int, *, default_base: float) -> RopeRecipe:
    """The table of sliding-window blocks: `rope.freq_base_swa`, never scaled."""
    return RopeRecipe(
        dimensions=header.count("rope.dimension_count", head_size),
        base=header.positive("rope.freq_base_swa", default_base),
    )


def _longrope(header: Header, recipe: RopeRecipe) -> RopeRecipe:
    """Phi's two factor tensors; which one holds is decided by the context a worker is given."""
    pairs = recipe.dimensions // 2
    return replace(
        recipe,
        factors=recipe.factors or header.vector(SHORT_FACTORS, pairs),
        long_factors=header.vector(LONG_FACTORS, pairs),
        original_context_length=_original_context(header),
    )


def _scaled(header: Header, recipe: RopeRecipe) -> RopeRecipe:
    """The factor holds whatever the type says, except for `none`; the default type is linear."""
    kind = header.text("rope.scaling.type", "linear")
    scale = header.number("rope.scaling.factor", 0.0) or header.number("rope.scale_linear", 0.0)
    if kind == "none" or (kind in ("linear", "longrope") and scale in (0.0, 1.0)):
        return recipe
    if kind not in ("linear", "yarn"):
        raise Unsupported(f"{header.architecture}: rope scaling {kind!r} is not supported yet")
    if scale <= 0:
        raise MalformedFile(f"{header.architecture}.rope.scaling.factor is {scale}")
    if kind == "linear":
        return replace(recipe, scaling=kind, scale=scale)
    if recipe.base <= 1.0:
        raise MalformedFile(f"{header.architecture}.rope.freq_base is {recipe.base}")
    return replace(
        recipe,
        scaling=kind,
        scale=scale,
        original_context_length=_original_context(header),
        yarn_beta_fast=header.positive("rope.scaling.yarn_beta_fast", 32.0),
        yarn_beta_slow=header.positive("rope.scaling.yarn_beta_slow", 1.0),
        yarn_log_multiplier=header.number("rope.scaling.yarn_log_multiplier", 0.0),
    )


def _original_context(header: Header) -> int:
    key = "rope.scaling.original_context_length"
    return header.count(key, 0) or context_length(header)
