"""Several residual streams (AltUp) with inputs of each block's own, as data: what Gemma 3n adds.

Before the blocks x becomes `streams` streams: x itself, and projections of it as long as x is. Each
block predicts all streams from all, computes as usual on the prediction of the first one, and corrects
every stream by how far that came from its prediction. After the blocks the streams are brought back to
one: the mean of the first and of projections of the others, as long as the first is.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from converters.architectures.parts import Linear, Norm

# No number is divided by a length whose square is less than this, times as many numbers.
LEAST_SQUARE = 1e-5


class AltUp(msgspec.Struct, frozen=True, kw_only=True):
    """Of the whole model.

    `spread` and `gather` [streams - 1, E, E] are before and after the blocks. `table` has for each id
    `inputs` numbers per block; a block's own input is (`inputs`^½ · those + input_norm(E^-½ ·
    projection(x))) / √2.
    """

    streams: int
    inputs: int
    spread: Linear
    gather: str
    table: Linear
    projection: Linear
    input_norm: Norm

    def linears(self) -> Iterator[Linear]:
        """Those that activations are multiplied with as they are."""
        yield from (self.spread, self.projection)

    def tensor_names(self) -> Iterator[str]:
        yield from (self.gather, self.table.weight, self.input_norm.weight)
        yield from (linear.weight for linear in self.linears())


class BlockAltUp(msgspec.Struct, frozen=True, kw_only=True):
    """Of one block, whose normed first prediction is h, and whose result, without these, is y.

    m(x) = tanh(router router_norm(x) / E). Predictions: P = X + C X with `predict` m(first of X) as
    C [streams, streams]. In place of the residual h's branch is joined by
    low_rank(h) = h + low_rank_norm(right left h), and their sum is divided by √2. Corrected streams:
    P + (1 + `correct` m(y)) (y - first of P). To all but the first is added
    own_norm(own_output(gelu_tanh(own_gate(scale · first)) · the block's own input)).
    """

    router: Linear
    router_norm: Norm
    predict: Linear
    correct: Linear
    scale: str
    left: Linear
    right: Linear
    low_rank_norm: Norm
    own_gate: Linear
    own_output: Linear
    own_norm: Norm

    def linears(self) -> Iterator[Linear]:
        """Without those of a few rows, which stay plain numbers."""
        yield from (self.left, self.right, self.own_gate, self.own_output)

    def small(self) -> Iterator[Linear]:
        yield from (self.router, self.predict, self.correct)

    def norms(self) -> Iterator[Norm]:
        yield from (self.router_norm, self.low_rank_norm, self.own_norm)
