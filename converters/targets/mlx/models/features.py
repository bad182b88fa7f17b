"""The features of a model by name: what a module of mlx-lm must have to compute what the file means."""

from __future__ import annotations

from collections.abc import Iterator

from converters.architectures.experts import Experts
from converters.architectures.mixers import Attention, LatentAttention, Mamba2, ShortConvolution
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.parts import Absent, FeedForward, Linear


def features_of(model: ModelShape) -> set[str]:
    """Those of the model, of its mixers and of its blocks."""
    found = {*_model_features(model), *_attention_shapes(model), *_rotations(model)}
    for block in model.blocks:
        found.update(_mixer_features(block))
        found.update(_block_features(block))
    return found


def _model_features(model: ModelShape) -> Iterator[str]:
    yield from _when("vectors instead of ids", model.encoder is not None)
    yield from _when("query temperature", model.temperature is not None)
    yield from _when("embedding scale", model.embedding_scale != 1)
    yield from _when("logit scale", model.logit_scale != 1)
    yield from _when("logit soft cap", bool(model.logit_softcap))
    yield from _when("tied output", model.is_tied)
    yield from _when("several streams", model.altup is not None)
    yield from _when("output bias", model.output is not None and bool(model.output.bias))
    networks = list(model.networks())
    kinds = {isinstance(each, Experts) for each in networks}
    yield from _when("dense blocks among experts", len(kinds) > 1)
    widths = {(isinstance(each, Experts), each.down.columns) for each in networks}
    yield from _when("blocks of several widths", len(widths) > len(kinds))


def _attention_shapes(model: ModelShape) -> Iterator[str]:
    mixers = (block.mixer for block in model.blocks)
    found = [each for each in mixers if isinstance(each, Attention) and not each.reading]
    shapes = {(each.heads, each.kv_heads, each.head_size) for each in found}
    yield from _when("blocks of several head counts", len(shapes) > 1)
    widths = {heads * size for heads, _, size in shapes}
    yield from _when("free head size", bool(widths - {model.embedding_length}))


def _rotations(model: ModelShape) -> Iterator[str]:
    mixers = (block.mixer for block in model.blocks)
    sizes = {each.head_size for each in mixers if isinstance(each, Attention)}
    for recipe in model.rope.values():
        yield from _when("partial rotation", bool(sizes - {recipe.dimensions}))
        yield from _when("rope factors", bool(recipe.factors))
        yield from _when("long rope factors", bool(recipe.long_factors))
        yield from _when("rope scaling", recipe.scaling != "none" or recipe.magnitude != 1)


def _mixer_features(block: BlockShape) -> Iterator[str]:
    match block.mixer:
        case Attention():
            yield from _attention_features(block.mixer)
        case LatentAttention():
            yield "latent attention"
        case ShortConvolution():
            yield "short convolution"
        case Mamba2():
            yield "mamba 2"
            yield from _when("mamba 2 in groups", block.mixer.groups > 1)
        case Absent():
            yield "blocks of one part"
        case _:
            yield "gated delta net"


def _attention_features(attention: Attention) -> Iterator[str]:
    yield from _when("norms of values", attention.has_value_norm)
    yield from _when("keys of another block", attention.reading is not None)
    has_norms = attention.query_norm is not None or attention.key_norm is not None
    yield from _when("norms of q and k", has_norms)
    yield from _when("attention sinks", bool(attention.sinks))
    yield from _when("norms after rotation", has_norms and attention.is_normed_after)
    yield from _when("gated attention", attention.has_output_gate)
    yield from _when("attention gate of its own", attention.gate is not None)
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
    has_mixer = not isinstance(block.mixer, Absent)
    yield from _when("attention without norm before", has_mixer and block.attention_norm is None)
    has_two = block.is_parallel and block.feed_forward_norm is not None
    yield from _when("norms of both branches", has_two)
    has_network = not isinstance(block.feed_forward, Absent)
    is_plain = has_network and block.feed_forward_norm is None and not block.is_parallel
    yield from _when("feed-forward without norm before", is_plain)
    after = (block.after_attention_norm, block.second_after_norm, block.after_feed_forward_norm)
    yield from _when("norms of sums", any(norm is not None for norm in after))
    yield from _when("layer norm", any(norm.is_centered for norm in block.norms()))
    match block.feed_forward:
        case Absent():
            yield "blocks of one part"
        case Experts():
            yield from _expert_features(block.feed_forward)
        case FeedForward():
            yield from _feed_forward_features(block.feed_forward)


def _expert_features(experts: Experts) -> Iterator[str]:
    yield "experts"
    yield from _when("experts without gates", experts.activation != "swiglu")
    yield from _when("experts of relu_squared", experts.activation == "relu_squared")
    yield from _when("experts over a latent", experts.latent_down is not None)
    is_bare = experts.shared is not None and experts.shared_gate is None
    yield from _when("shared expert", experts.shared is not None and not is_bare)
    yield from _when("shared expert without gate", is_bare)
    if experts.shared is not None:
        activation = experts.shared.activation
        yield from _when(f"shared expert of {activation}", activation != "silu")
    yield from _when("unnormalised experts", not experts.is_normalised)
    yield from _when("experts by sigmoid", experts.gating != "softmax")
    yield from _when("scaled experts", experts.scale != 1)
    yield from _when("experts in groups", experts.groups > 1)
    yield from _when("bias on choosing experts", bool(experts.selection_bias))
    has_bias = bool(experts.router.bias) or any(each.bias for each in experts.matrices())
    yield from _when("biases of experts", has_bias)
    is_bent = (experts.alpha, experts.beta, experts.limit) != (1.0, 0.0, 0.0)
    yield from _when("clipped experts", is_bent)


def _feed_forward_features(network: FeedForward) -> Iterator[str]:
    yield from _when("feed-forward biases", _has_bias(network.up, network.down))
    yield from _when(network.activation, network.activation != "silu")
    yield from _when("fused gate", network.is_up_fused)
    yield from _when("cut-off gates", network.cutoff is not None)
    has_gate = network.gate is not None or network.is_up_fused
    yield from _when("feed-forward without gate", not has_gate)


def _when(feature: str, is_there: bool) -> Iterator[str]:
    if is_there:
        yield feature


def _has_bias(*linears: Linear | None) -> bool:
    return any(linear is not None and linear.bias for linear in linears)


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * abs(other)
