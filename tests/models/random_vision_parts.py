"""The pieces that random vision towers are built from, as in `random_parts`: sizes and weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tests.models.random_parts import Weight, bias, layer_norm, matrix, norm


@dataclass(frozen=True)
class TowerShape:
    """Sizes of one tower and its projector; `text` is the embedding length of its text model."""

    blocks: int = 3
    width: int = 64
    heads: int = 2
    feed_forward: int = 96
    image: int = 112
    patch: int = 14
    merge: int = 2
    text: int = 128

    @property
    def places(self) -> int:
        """Patches of one whole tile."""
        return (self.image // self.patch) ** 2


def patches(
    shape: TowerShape, *, suffix: str = "weight", has_bias: bool = False
) -> Iterator[Weight]:
    """The first convolution, [W, 3, p, p]; pixels are of order one, and so is what they give."""
    columns = 3 * shape.patch**2
    size = (shape.width, 3, shape.patch, shape.patch)
    yield Weight(f"v.patch_embd.{suffix}", size, 1.5 / math.sqrt(columns))
    if has_bias:
        yield bias("v.patch_embd.bias", shape.width)


def place_table(shape: TowerShape, rows: int) -> Weight:
    return Weight("v.position_embd.weight", (rows, shape.width), 0.5, is_matrix=False)


def linear(
    name: str, rows: int, columns: int, *, has_bias: bool = True, gain: float = 1.0
) -> Iterator[Weight]:
    yield matrix(f"{name}.weight", rows, columns, gain)
    if has_bias:
        yield bias(f"{name}.bias", rows, 0.2)


def blocks(
    shape: TowerShape,
    *,
    has_norm_bias: bool = True,
    has_bias: bool = True,
    is_gated: bool = False,
    is_fused: bool = False,
    has_scales: bool = False,
    up: str = "ffn_up",
    down: str = "ffn_down",
) -> Iterator[Weight]:
    """Norm, attention, norm, feed-forward. `up` and `down` swapped are how old files call them."""
    width, wide = shape.width, shape.feed_forward
    for index in range(shape.blocks):
        prefix = f"v.blk.{index}."
        yield from layer_norm(prefix, "ln1", width, has_bias=has_norm_bias)
        yield from layer_norm(prefix, "ln2", width, has_bias=has_norm_bias)
        for name in ("qkv",) if is_fused else ("q", "k", "v"):
            rows = 3 * width if is_fused else width
            yield from linear(f"{prefix}attn_{name}", rows, width, has_bias=has_bias, gain=1.3)
        yield from linear(f"{prefix}attn_out", width, width, has_bias=has_bias)
        if is_gated:
            yield from linear(f"{prefix}ffn_gate", wide, width, has_bias=has_bias)
        yield from linear(prefix + up, wide, width, has_bias=has_bias)
        yield from linear(prefix + down, width, wide, has_bias=has_bias)
        if has_scales:
            yield norm(f"{prefix}ls1.weight", width)
            yield norm(f"{prefix}ls2.weight", width)
