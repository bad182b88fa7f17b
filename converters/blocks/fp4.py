"""The 4-bit floats: E2M1 codes under E8M0 (MXFP4) or unsigned E4M3 (NVFP4) scales, no fp16 at all.

The codes stand for twice their value, so the scales are half of what the byte says; sources:
llama.cpp, `kvalues_mxfp4`, `ggml_e8m0_to_fp32_half`, `ggml_ue4m3_to_fp32`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from converters.blocks.block_type import (
    Bytes,
    CodedBlockType,
    Floats,
    looked_up,
    paired_halves,
    words,
)

_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
_CODES = bytes(level + 128 for level in _DOUBLED)


def _half_e8m0() -> Floats:
    """2^(byte - 128) for each byte; the two smallest are subnormal."""
    exponents = np.arange(256, dtype=np.float64) - 128
    return np.exp2(exponents).astype(np.float32)


def _half_ue4m3() -> Floats:
    """Half of an unsigned E4M3 for each byte; its sign bit does not count, 0x7F is 0."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    normal = (1 + mantissa / 8) * np.exp2(exponent - 7.0)
    values = np.where(exponent == 0, mantissa * 2.0**-9, normal) / 2
    values[0x7F] = 0
    return values.astype(np.float32)


_MX_SCALES = _half_e8m0()
_NV_SCALES = _half_ue4m3()


class Fp4BlockType(CodedBlockType, is_abstract=True):
    """Beside integer codes it gives the floats' own bits, for targets that have them."""

    run: ClassVar[int]

    def packed_floats(self, raw: Bytes) -> Bytes:
        """The E2M1 codes themselves in the order of the weights, two to a byte, the first one low."""
        return paired_halves(self._halves(self._checked(raw)), self.run)

    def scale_bytes(self, raw: Bytes) -> Bytes:
        """The scales as the file has them, u8 [n, block_size/sub]."""
        return self._checked(raw)[:, : self.block_size // self.sub]

    def _halves(self, raw: Bytes) -> np.ndarray:
        """Runs of `run` u64 lanes whose low nibbles come before their high ones."""
        raise NotImplementedError

    def _codes(self, raw: Bytes) -> Bytes:
        return looked_up(self._halves(raw), self.run, _CODES)


class MXFP4(Fp4BlockType, bits=8, zero=128):
    """A byte of scale, 16 bytes of codes: low halves are weights 0-15."""

    name, block_size, type_size, sub = "MXFP4", 32, 17, 32

    run = 2

    def _halves(self, raw: Bytes) -> np.ndarray:
        return words(raw, 1, 17)

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        return _MX_SCALES[self.scale_bytes(raw)], None


class NVFP4(Fp4BlockType, bits=8, zero=128):
    """4 bytes of scales, then for each 8 bytes of codes: low halves are weights 0-7."""

    name, block_size, type_size, sub = "NVFP4", 64, 36, 16

    run = 1

    def _halves(self, raw: Bytes) -> np.ndarray:
        return words(raw, 4, 36)

    def _scales(self, raw: Bytes) -> tuple[Floats, None]:
        return _NV_SCALES[self.scale_bytes(raw)], None
