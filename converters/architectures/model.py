"""What an architecture says about a file: hyperparameters and which tensor plays which role.

Pure data, made from the header alone by one `describe` per architecture. The targets ask these
Structs and never look at metadata or at tensor names of their own. A feature that an architecture
does not have keeps its default, so that adding one touches only the architectures that use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

Activation = Literal["silu", "gelu", "gelu_tanh"]


class Linear(msgspec.Struct, frozen=True, kw_only=True):
    """y = x Wᵀ + b: the weight is [rows, columns] and takes `columns` numbers to `rows`."""

    weight: str
    rows: int
    columns: int
    bias: str = ""


class RopeRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """How the inverse frequencies come about; `rope.inverse_frequencies` follows it.

    `dimensions` counts the rotated numbers of a head. `factors` names an F32 tensor
    [dimensions / 2] that divides them. `scaling` linear and yarn use `scale`, the context factor.
    """

    dimensions: int
    base: float
    factors: str = ""
    scaling: Literal["none", "linear", "yarn"] = "none"
    scale: float = 1.0
    magnitude: float = 1.0
    original_context_length: int = 0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_extrapolation: float = 1.0


class Attention(msgspec.Struct, frozen=True, kw_only=True):
    """Grouped-query attention over a KV cache. Either `fused` ([q; k; v] rows) or the three.

    `rope` names a recipe of the model, empty for none. `interleaved` pairs (2i, 2i+1), llama.cpp's
    NORM; otherwise (i, i + dimensions/2), its NEOX. `window` 0 sees everything, W the last W ids
    with its own. Norm names are [head_size] wide, or the whole projection wide.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    output: Linear
    query: Linear | None = None
    key: Linear | None = None
    value: Linear | None = None
    fused: Linear | None = None
    query_norm: str = ""
    key_norm: str = ""
    rope: str = "global"
    interleaved: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: str = ""

    def linears(self) -> Iterator[Linear]:
        for linear in (self.fused, self.query, self.key, self.value, self.output):
            if linear is not None:
                yield linear


class FeedForward(msgspec.Struct, frozen=True, kw_only=True):
    """down(activation(gate x) · up x); without `gate` down(activation(up x)).

    `is_up_fused`: the rows of `up` are [gate; up] and `gate` is None.
    """

    activation: Activation
    up: Linear
    down: Linear
    gate: Linear | None = None
    is_up_fused: bool = False

    def linears(self) -> Iterator[Linear]:
        for linear in (self.gate, self.up, self.down):
            if linear is not None:
                yield linear


class BlockShape(msgspec.Struct, frozen=True, kw_only=True):
    """One transformer block. Norms are tensor names; an empty one is not there.

    x += residual_scale · post_attention_norm(attention(attention_norm(x))), then the same with the
    feed-forward network.
    """

    attention: Attention
    feed_forward: FeedForward
    attention_norm: str = ""
    feed_forward_norm: str = ""
    post_attention_norm: str = ""
    post_feed_forward_norm: str = ""
    residual_scale: float = 1.0

    def linears(self) -> Iterator[Linear]:
        yield from self.attention.linears()
        yield from self.feed_forward.linears()

    def vectors(self) -> Iterator[str]:
        """Norm weights and sinks; biases belong to their linears."""
        attention = self.attention
        names = (
            self.attention_norm,
            attention.query_norm,
            attention.key_norm,
            attention.sinks,
            self.post_attention_norm,
            self.feed_forward_norm,
            self.post_feed_forward_norm,
        )
        return (name for name in names if name)


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A causal decoder. `vocabulary` counts the ids that have both a row and a text.

    The output is tied where `output.weight` is `embedding.weight`. `logit_scale` multiplies the
    logits, then `logit_softcap` c gives c · tanh(logits / c).
    """

    architecture: str
    name: str
    embedding_length: int
    vocabulary: int
    context_length: int
    epsilon: float
    embedding: Linear
    output_norm: str
    output: Linear
    blocks: tuple[BlockShape, ...]
    rope: dict[str, RopeRecipe]
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0

    @property
    def is_tied(self) -> bool:
        return self.output.weight == self.embedding.weight

    def tensor_names(self) -> frozenset[str]:
        """Every tensor that some role uses."""
        linears = [self.embedding, self.output]
        vectors = [self.output_norm, *(recipe.factors for recipe in self.rope.values())]
        for block in self.blocks:
            linears.extend(block.linears())
            vectors.extend(block.vectors())
        names = {linear.weight for linear in linears} | {linear.bias for linear in linears}
        return frozenset(names.union(vectors) - {""})
