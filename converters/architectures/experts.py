"""A mixture of experts as data: a router, stacked expert matrices, and what every id passes too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from converters.architectures.parts import FeedForward, Linear

ExpertActivation = Literal["swiglu", "gelu", "relu_squared"]


class ExpertMatrix(msgspec.Struct, frozen=True, kw_only=True):
    """`weight` [experts, rows, columns], `bias` [experts, rows] or ""."""

    weight: str
    rows: int
    columns: int
    bias: str = ""


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """Σ over the `used` likeliest experts of weight · down(swiglu(gate x, up x)), times `scale`.

    swiglu(g, u) = min(g, limit) · sigmoid(alpha · g) · (clip(u, ±limit) + beta); limit 0 is none.
    `gating`: the weights are softmax or sigmoid of the router's numbers, divided by their sum over
    the chosen ones where `is_normalised`. `selection_bias` [count] is added for choosing only.
    Of `groups` of neighbouring experts the `groups_used` with the largest sums of their two best are
    chosen first, and experts from those only.
    `shared` is added, times sigmoid(shared_gate x) where that is there.
    `is_gate_up_fused`: the rows of `up` are [gate; up] and `gate` is None.
    With `latent_down` and `latent_up` the experts, but not their router, read latent_down x, and their sum
    goes through latent_up.
    `activation` "gelu", "relu_squared": experts without a gate, down(activation(up x)), and `gate` is None.
    """

    count: int
    used: int
    router: Linear
    up: ExpertMatrix
    down: ExpertMatrix
    gate: ExpertMatrix | None = None
    is_gate_up_fused: bool = False
    activation: ExpertActivation = "swiglu"
    gating: Literal["softmax", "sigmoid"] = "softmax"
    is_normalised: bool = True
    scale: float = 1.0
    selection_bias: str = ""
    groups: int = 1
    groups_used: int = 1
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0
    shared: FeedForward | None = None
    shared_gate: Linear | None = None
    latent_down: Linear | None = None
    latent_up: Linear | None = None

    @property
    def is_softmax_of_chosen(self) -> bool:
        """Whether the chosen ones are those of the largest numbers, and share their softmax."""
        is_plain = self.groups == 1 and not self.selection_bias
        return is_plain and self.gating == "softmax" and self.is_normalised

    def linears(self) -> Iterator[Linear]:
        """The plain matrices; those of the experts are `matrices`."""
        yield self.router
        if self.shared:
            yield from self.shared.linears()
        for linear in (self.shared_gate, self.latent_down, self.latent_up):
            if linear is not None:
                yield linear

    def matrices(self) -> Iterator[ExpertMatrix]:
        for matrix in (self.gate, self.up, self.down):
            if matrix is not None:
                yield matrix

    def tensor_names(self) -> Iterator[str]:
        for linear in self.linears():
            yield from (linear.weight, linear.bias)
        for matrix in self.matrices():
            yield from (matrix.weight, matrix.bias)
        yield self.selection_bias
