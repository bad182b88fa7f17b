"""The smallest parts of a model's description: a matrix, a norm, a feed-forward network. Pure data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

Activation = Literal["silu", "gelu", "gelu_tanh", "relu_squared", "xielu"]


class Linear(msgspec.Struct, frozen=True, kw_only=True):
    """y = x Wᵀ + b: the weight is [rows, columns] and takes `columns` numbers to `rows`."""

    weight: str
    rows: int
    columns: int
    bias: str = ""

    @property
    def stem(self) -> str:
        return self.weight.removesuffix(".weight")


class Norm(msgspec.Struct, frozen=True, kw_only=True):
    """RMSNorm of width `weight`, or with `is_centered` LayerNorm."""

    weight: str
    bias: str = ""
    is_centered: bool = False


class Keyless(msgspec.Struct, frozen=True):
    """In the place of attention: a row keeps no keys and values for it."""

    @property
    def kv_heads(self) -> int:
        return 0

    @property
    def head_size(self) -> int:
        return 0


class Absent(Keyless, frozen=True):
    """In the place of the mixer or the feed-forward network of a block that has only the other one."""

    def linears(self) -> Iterator[Linear]:
        return iter(())

    def vectors(self) -> Iterator[str]:
        return iter(())

    def tensor_names(self) -> Iterator[str]:
        return iter(())


class Xielu(msgspec.Struct, frozen=True, kw_only=True):
    """f(x) = p x² + b x above 0, else n (e^min(x, eps) - 1 - x) + b x.

    b is `beta`; p = ln(1 + e^positive) and n = b + ln(1 + e^negative), of the numbers in the file.
    """

    positive: float
    negative: float
    beta: float
    eps: float


class FeedForward(msgspec.Struct, frozen=True, kw_only=True):
    """down(activation(gate x) · up x); without `gate` down(activation(up x)).

    `is_up_fused`: the rows of `up` are [gate; up] and `gate` is None. `xielu`: of that activation.
    `cutoff` c: in place of gate x its excess over mean + c · deviation (of a sample: divided by one less
    than there are), 0 below; None for all of it.
    """

    activation: Activation
    up: Linear
    down: Linear
    gate: Linear | None = None
    is_up_fused: bool = False
    xielu: Xielu | None = None
    cutoff: float | None = None

    def linears(self) -> Iterator[Linear]:
        for linear in (self.gate, self.up, self.down):
            if linear is not None:
                yield linear

    def tensor_names(self) -> Iterator[str]:
        for linear in self.linears():
            yield from (linear.weight, linear.bias)
