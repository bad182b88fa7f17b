"""The types that hold plain floating-point numbers: F32, F16, BF16. They have no codes."""

from __future__ import annotations

import numpy as np

from converters.blocks.block_type import BlockType, Bytes, Floats


class F32(BlockType):
    name, block_size, type_size = "F32", 1, 4

    def dequantize(self, raw: Bytes) -> Floats:
        return self._checked(raw).view("<f4").astype(np.float32, copy=True)


class F16(BlockType):
    name, block_size, type_size = "F16", 1, 2

    def dequantize(self, raw: Bytes) -> Floats:
        with np.errstate(invalid="ignore"):
            return self._checked(raw).view("<f2").astype(np.float32)


class BF16(BlockType):
    """The upper half of an fp32 number."""

    name, block_size, type_size = "BF16", 1, 2

    def dequantize(self, raw: Bytes) -> Floats:
        bits = self._checked(raw).view("<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32)
