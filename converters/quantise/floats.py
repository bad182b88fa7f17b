"""F32, F16 and BF16: no codes, only rounding to the nearest."""

from __future__ import annotations

import numpy as np

from converters.quantise.encoder import Bytes, Encoder, Floats, halves

LARGEST_BRAIN = 3.3895313892515355e38


class F32(Encoder):
    name, block_size, type_size, largest = "F32", 1, 4, float("inf")

    def encode(self, weights: Floats) -> Bytes:
        return weights.view(np.uint8)


class F16(Encoder):
    name, block_size, type_size = "F16", 1, 2

    def encode(self, weights: Floats) -> Bytes:
        return halves(weights).view(np.uint8)


class BF16(Encoder):
    """The upper half of an fp32 number after rounding, ties to even."""

    name, block_size, type_size, largest = "BF16", 1, 2, LARGEST_BRAIN

    def encode(self, weights: Floats) -> Bytes:
        bits = weights.view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = bits + (np.uint32(0x7FFF) + odd)
        return (rounded >> np.uint32(16)).astype(np.uint16).view(np.uint8)
