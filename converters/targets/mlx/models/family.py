"""What a model of mlx-lm can be given, and the checks that nothing of a file is lost on it.

mlx-lm's modules compute what their author wrote, not what a config says; so each family lists the
features that its module has and those it cannot do without; any other file is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from converters.architectures.experts import Experts
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.parts import FeedForward, Linear
from converters.errors import Unsupported
from converters.targets.mlx.forms import Number
from converters.targets.mlx.models.names import Names

Config = dict[str, object]
# What `rope.rope_config` can say to a module that reads `rope_scaling`.
ROPE_TABLES = frozenset({"rope factors", "rope scaling"})


def no_biases(model: ModelShape) -> frozenset[str]:
    return frozenset()


def attention_of(block: BlockShape) -> Attention:
    """Of a block that `check` has passed."""
    if not isinstance(block.mixer, Attention):
        raise Unsupported(f"blocks of {type(block.mixer).__name__} are not supported on MLX yet")
    return block.mixer


def experts_of(model: ModelShape) -> Experts:
    """Of the first block of a mixture."""
    experts = model.blocks[0].feed_forward
    if not isinstance(experts, Experts):
        raise Unsupported(f"{model.architecture}: dense blocks among experts, on MLX")
    return experts


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One model type of mlx-lm.

    `config` adds to what all decoders have (`decoder_config`), and may raise Unsupported. `biases`
    names the roles that must have one; where the file has none, zeros are written. `norm_shift` is
    added to norm weights. `keeps_pairs`: the module rotates neighbouring numbers as llama.cpp's NORM.
    `ignores_windows`: it sees everything, so the context ends where the window does.
    """

    model_type: str
    carries: frozenset[str]
    needs: frozenset[str] = frozenset()
    config: Callable[[ModelShape], Config] = lambda model: {}
    biases: Callable[[ModelShape], frozenset[str]] = no_biases
    names: Names = Names()
    number: Number = "F16"
    norm_shift: float = 0.0
    keeps_pairs: bool = False
    ignores_windows: bool = False


def check(model: ModelShape, family: Family) -> None:
    """Raises Unsupported naming the features that the family's module does not have."""
    wanted = set(_model_features(model))
    for block in model.blocks:
        wanted.update(_attention_features(attention_of(block)))
        wanted.update(_block_features(block))
    if family.ignores_windows:
        wanted.discard("sliding window")
    if unmet := sorted(family.needs - wanted):
        raise Unsupported(
            f"mlx-lm's {family.model_type} model has {' and '.join(unmet)},"
            f" which this {model.architecture} file has not"
        )
    if missing := sorted(wanted - family.carries):
        raise Unsupported(
            f"mlx-lm's {family.model_type} model has no {', no '.join(missing)},"
            f" which this {model.architecture} file needs"
        )


def context_length(model: ModelShape, family: Family) -> int:
    """How far the module computes what the file means."""
    windows = [attention_of(block).window for block in model.blocks]
    if not family.ignores_windows or not any(windows):
        return model.context_length
    return min(model.context_length, *(window for window in windows if window))


def decoder_config(model: ModelShape, family: Family) -> Config:
    """The keys that every decoder's config has."""
    attention, feed_forward = attention_of(model.blocks[0]), model.blocks[0].feed_forward
    return {
        "model_type": family.model_type,
        "hidden_size": model.embedding_length,
        "num_hidden_layers": len(model.blocks),
        "intermediate_size": feed_forward.down.columns,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_size,
        "rms_norm_eps": model.epsilon,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": context_length(model, family),
        "tie_word_embeddings": model.is_tied,
    } | family.config(model)


def _model_features(model: ModelShape) -> Iterator[str]:
    attentions = [attention_of(block) for block in model.blocks]
    first = attentions[0]
    yield from _when("vectors instead of ids", model.encoder is not None)
    yield from _when("query temperature", model.temperature is not None)
    yield from _when("embedding scale", model.embedding_scale != 1)
    yield from _when("logit scale", model.logit_scale != 1)
    yield from _when("logit soft cap", bool(model.logit_softcap))
    yield from _when("tied output", model.is_tied)
    kinds = {isinstance(each.feed_forward, Experts) for each in model.blocks}
    yield from _when("dense blocks among experts", len(kinds) > 1)
    widths = {each.feed_forward.down.columns for each in model.blocks}
    yield from _when("blocks of several widths", len(widths) > 1)
    shapes = {(each.heads, each.kv_heads, each.head_size) for each in attentions}
    yield from _when("blocks of several head counts", len(shapes) > 1)
    is_free = first.heads * first.head_size != model.embedding_length
    yield from _when("free head size", is_free)
    for recipe in model.rope.values():
        yield from _when("partial rotation", recipe.dimensions != first.head_size)
        yield from _when("rope factors", bool(recipe.factors))
        yield from _when("long rope factors", bool(recipe.long_factors))
        yield from _when("rope scaling", recipe.scaling != "none" or recipe.magnitude != 1)


def _attention_features(attention: Attention) -> Iterator[str]:
    has_norms = attention.query_norm is not None or attention.key_norm is not None
    yield from _when("norms of q and k", has_norms)
    yield from _when("attention sinks", bool(attention.sinks))
    yield from _when("sliding window", bool(attention.window))
    yield from _when("attention soft cap", bool(attention.softcap))
    yield from _when("linear position bias", bool(attention.alibi_bias))
    yield from _when("attention scale", not _near(attention.scale, attention.head_size**-0.5))
    yield from _when("block without rotation", not attention.rope)
    yield from _when("second rotation", attention.rope not in ("", "global"))
    yield from _when("fused q, k and v", attention.fused is not None)
    projections = (attention.query, attention.key, attention.value, attention.fused)
    yield from _when("biases of q, k and v", _has_bias(*projections))
    yield from _when("attention output bias", _has_bias(attention.output))


def _block_features(block: BlockShape) -> Iterator[str]:
    yield from _when("residual scale", block.residual_scale != 1)
    yield from _when("parallel branches", block.is_parallel)
    yield from _when("norms after attention", block.post_attention_norm is not None)
    yield from _when("norms after the feed-forward", block.post_feed_forward_norm is not None)
    yield from _when("attention without norm before", block.attention_norm is None)
    is_plain = block.feed_forward_norm is None and not block.is_parallel
    yield from _when("feed-forward without norm before", is_plain)
    after = (block.after_attention_norm, block.second_after_norm, block.after_feed_forward_norm)
    yield from _when("norms of sums", any(norm is not None for norm in after))
    yield from _when("layer norm", any(norm.is_centered for norm in block.norms()))
    if isinstance(block.feed_forward, Experts):
        yield from _expert_features(block.feed_forward)
    else:
        yield from _feed_forward_features(block.feed_forward)


def _expert_features(experts: Experts) -> Iterator[str]:
    yield "experts"
    yield from _when("shared expert", experts.shared is not None)
    is_bare = experts.shared is not None and experts.shared_gate is None
    yield from _when("shared expert without gate", is_bare)
    yield from _when("unnormalised experts", not experts.is_normalised)
    yield from _when("experts by sigmoid", experts.gating != "softmax")
    yield from _when("scaled experts", experts.scale != 1)
    yield from _when("bias on choosing experts", bool(experts.selection_bias))
    yield from _when("fused gate of experts", experts.is_gate_up_fused)
    has_bias = bool(experts.router.bias) or any(each.bias for each in experts.matrices())
    yield from _when("biases of experts", has_bias)
    is_bent = (experts.alpha, experts.beta, experts.limit) != (1.0, 0.0, 0.0)
    yield from _when("clipped experts", is_bent)


def _feed_forward_features(network: FeedForward) -> Iterator[str]:
    yield from _when("feed-forward biases", _has_bias(network.up, network.down))
    yield from _when(network.activation, network.activation != "silu")
    yield from _when("fused gate", network.is_up_fused)
    has_gate = network.gate is not None or network.is_up_fused
    yield from _when("feed-forward without gate", not has_gate)


def _when(feature: str, is_there: bool) -> Iterator[str]:
    if is_there:
        yield feature


def _has_bias(*linears: Linear | None) -> bool:
    return any(linear is not None and linear.bias for linear in linears)


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * abs(other)
