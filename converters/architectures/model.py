"""What an architecture says about a file: hyperparameters and which tensor plays which role.

Pure data, made from the header alone by one `describe` per architecture. The targets ask these
Structs and never look at metadata or at tensor names of their own. A feature that an architecture
does not have keeps its default, so that adding one touches only the architectures that use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from converters.architectures.altup import AltUp, BlockAltUp
from converters.architectures.experts import Experts
from converters.architectures.mixers import (
    Attention,
    GatedDeltaNet,
    LatentAttention,
    Mamba2,
    ShortConvolution,
)
from converters.architectures.parts import Absent, FeedForward, Linear, Norm

Mixer = Attention | LatentAttention | ShortConvolution | GatedDeltaNet | Mamba2
Network = FeedForward | Experts
Pooling = Literal["", "mean", "cls", "last", "rank"]


class RopeRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """How the inverse frequencies come about; `rope.inverse_frequencies` follows it.

    `dimensions` counts the rotated numbers of a head. `factors` names an F32 tensor
    [dimensions / 2] that divides them; `long_factors` takes its place where the context is longer
    than `original_context_length`. `scaling` linear and yarn use `scale`, the context factor.
    `magnitude` multiplies cos and sin on top of what yarn asks for itself; `yarn_log_multiplier` m
    divides yarn's own 1 + 0.1 ln(scale) by 1 + 0.1 m ln(scale). `sections` and `has_interleaved_sections`
    are those of `RopeTable`.
    """

    dimensions: int
    base: float
    factors: str = ""
    long_factors: str = ""
    scaling: Literal["none", "linear", "yarn"] = "none"
    scale: float = 1.0
    magnitude: float = 1.0
    original_context_length: int = 0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_extrapolation: float = 1.0
    yarn_log_multiplier: float = 0.0
    sections: tuple[int, int, int] | None = None
    has_interleaved_sections: bool = False


class BlockShape(msgspec.Struct, frozen=True, kw_only=True):
    """One transformer block; a norm that is None is not there, nor is a part that is `Absent`.

    x += residual_scale · post_attention_norm(mixer(attention_norm(x))), then the same with the
    feed-forward network. `is_parallel`: both branches read attention_norm(x) and are added together; a
    feed_forward_norm, where there is one, makes what the second reads from the same x. `altup`: the
    stream is the first of several, and the branches join it as that says.
    `after_attention_norm`, `after_feed_forward_norm`: x = norm(x + branch), as BERT does;
    `second_after_norm`: then once more x' = norm(x' + x), of Jina's code model.
    """

    mixer: Mixer | Absent
    feed_forward: Network | Absent
    attention_norm: Norm | None = None
    feed_forward_norm: Norm | None = None
    post_attention_norm: Norm | None = None
    post_feed_forward_norm: Norm | None = None
    after_attention_norm: Norm | None = None
    second_after_norm: Norm | None = None
    after_feed_forward_norm: Norm | None = None
    residual_scale: float = 1.0
    is_parallel: bool = False
    altup: BlockAltUp | None = None

    def linears(self) -> Iterator[Linear]:
        yield from self.mixer.linears()
        yield from self.feed_forward.linears()
        if self.altup:
            yield from self.altup.linears()

    def norms(self) -> Iterator[Norm]:
        found = (
            self.attention_norm,
            self.post_attention_norm,
            self.after_attention_norm,
            self.second_after_norm,
            self.feed_forward_norm,
            self.post_feed_forward_norm,
            self.after_feed_forward_norm,
        )
        yield from (norm for norm in found if norm is not None)
        if self.altup:
            yield from self.altup.norms()

    def tensor_names(self) -> Iterator[str]:
        """Every tensor of the block; "" may be among them."""
        for linear in self.linears():
            yield from (linear.weight, linear.bias)
        for norm in self.norms():
            yield from (norm.weight, norm.bias)
        yield from self.mixer.vectors()
        yield from self.feed_forward.tensor_names()
        if self.altup:
            yield self.altup.scale
            yield from (linear.weight for linear in self.altup.small())


class Temperature(msgspec.Struct, frozen=True, kw_only=True):
    """Queries at position p are multiplied by 1 + strength · ln(1 + floor(p / length))."""

    strength: float
    length: int


class Encoder(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a model give vectors instead of ids.

    `pooling` "" gives the hidden states of all ids. Before the blocks: `positions` [ids, E] and
    row 0 of `token_types` are added, then `embedding_norm`. After pooling: `projections` one after
    the other; "rank": tanh between them (`has_tanh`), a softmax at the end (`has_softmax`).
    """

    pooling: Pooling
    is_causal: bool = False
    positions: str = ""
    token_types: str = ""
    embedding_norm: Norm | None = None
    projections: tuple[Linear, ...] = ()
    has_tanh: bool = False
    has_softmax: bool = False

    def tensor_names(self) -> Iterator[str]:
        yield from (self.positions, self.token_types)
        if self.embedding_norm:
            yield from (self.embedding_norm.weight, self.embedding_norm.bias)
        for linear in self.projections:
            yield from (linear.weight, linear.bias)


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A causal decoder, or with `encoder` a model that gives vectors (then `output` is None).

    `vocabulary` counts the ids that have both a row and a text. The output is tied where
    `output.weight` is `embedding.weight`. `logit_scale` multiplies the logits, then `logit_softcap`
    c gives c · tanh(logits / c). After each of the first `deepstack` blocks an image's positions add
    numbers of their own to the stream.
    """

    architecture: str
    name: str
    embedding_length: int
    vocabulary: int
    context_length: int
    epsilon: float
    embedding: Linear
    output_norm: Norm | None
    output: Linear | None
    blocks: tuple[BlockShape, ...]
    rope: dict[str, RopeRecipe]
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    temperature: Temperature | None = None
    encoder: Encoder | None = None
    altup: AltUp | None = None
    deepstack: int = 0
    unused: tuple[str, ...] = ()

    @property
    def is_tied(self) -> bool:
        return self.output is not None and self.output.weight == self.embedding.weight

    def networks(self) -> Iterator[Network]:
        """Of all blocks that have one."""
        for block in self.blocks:
            if not isinstance(block.feed_forward, Absent):
                yield block.feed_forward

    def tensor_names(self) -> frozenset[str]:
        """Every tensor that some role uses, and those the architecture knows to have none."""
        names = {self.embedding.weight, *self.unused}
        if self.output:
            names |= {self.output.weight, self.output.bias}
        if self.output_norm:
            names |= {self.output_norm.weight, self.output_norm.bias}
        for recipe in self.rope.values():
            names |= {recipe.factors, recipe.long_factors}
        for block in self.blocks:
            names.update(block.tensor_names())
        if self.encoder:
            names.update(self.encoder.tensor_names())
        if self.altup:
            names.update(self.altup.tensor_names())
        return frozenset(names - {""})
