"""What every quantiser is: a named class that turns fp32 weights into the bytes of GGML blocks."""

from __future__ import annotations

import abc
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# The largest number of fp16: beyond it neither a weight nor a scale could be written.
LARGEST_HALF = 65504.0


class Encoder(abc.ABC):
    """Writes `block_size` weights in `type_size` bytes; the layouts are those of `converters.blocks`.

    `largest` is the magnitude above which weights cannot be written.
    """

    name: ClassVar[str]
    block_size: ClassVar[int]
    type_size: ClassVar[int]
    largest: ClassVar[float] = LARGEST_HALF

    def __init_subclass__(cls, *, is_abstract: bool = False) -> None:
        super().__init_subclass__()
        if not is_abstract:
            ENCODERS[cls.name] = cls()

    @abc.abstractmethod
    def encode(self, weights: Floats) -> Bytes:
        """Finite f32 [n, block_size], none beyond `largest`, to blocks u8 [n, type_size]."""


ENCODERS: dict[str, Encoder] = {}


def columns(weights: Floats, group: int) -> Floats:
    """f32 [n, block_size] to groups as columns: [group, n*block_size/group]."""
    return np.ascontiguousarray(weights.reshape(-1, group).T)


def rows(codes: Floats, block_size: int) -> Bytes:
    """Codes 0-255 with groups as columns to u8 [n, block_size]."""
    return np.ascontiguousarray(codes.astype(np.uint8).T).reshape(-1, block_size)


def halves(numbers: Floats) -> npt.NDArray[np.float16]:
    """To the nearest fp16 numbers; what is too small becomes 0."""
    with np.errstate(under="ignore"):
        return numbers.astype(np.float16)


def reciprocal(numbers: Floats) -> Floats:
    """1/x, and 0 for 0 and where 1/x is beyond fp32."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / numbers
    inverse[~np.isfinite(inverse)] = 0
    return inverse
