"""What a weight loses on its way into a file: nothing as a rule, and measured where it does."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from converters.blocks import Repacked
from converters.errors import Unsupported
from converters.targets.onnx.expert_weights import ZeroPointed
from converters.targets.onnx.pieces import Piece

Floats = npt.NDArray[np.float32]
Narrow = npt.NDArray[Any]
# Weights whose errors are computed at once; they are fp32 meanwhile.
_SLICE_WEIGHTS = 1 << 20


class Rounding(msgspec.Struct):
    """Largest and summed squared distance from the fp32 dequantisation, over `count` numbers."""

    largest: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, repacked: Repacked) -> None:
        """An error of a correction is the error of every weight in its block."""
        self.count += repacked.scales.size * repacked.block
        if repacked.rounding is not None and repacked.rounding.any():
            errors = repacked.rounding.astype(np.float64)
            self.largest = max(self.largest, float(np.abs(errors).max()))
            self.squares += float(np.square(errors).sum()) * repacked.block

    def add_experts(self, part: ZeroPointed) -> None:
        """Re-encoded codes, by the bound of each group's error."""
        self.count += part.codes.size
        if part.errors.any():
            self.largest = max(self.largest, float(part.errors.max()))
            squares = np.square(part.errors, dtype=np.float64).sum()
            self.squares += float(squares) * part.codes.shape[2]

    def add_stored(self, numbers: Floats, stored: Narrow) -> None:
        """Plain numbers beside what the file has of them."""
        self.count += numbers.size
        if stored.dtype == numbers.dtype:
            return
        self._add_errors(stored.astype(np.float32).reshape(-1) - numbers.reshape(-1))

    def add_narrowed(self, repacked: Repacked, scales: Narrow, correction: Narrow | None) -> None:
        """Both in fp16: a weight is off by its code times what its scale is, and by the correction."""
        lost = _lost(scales, repacked.scales)
        shift = np.zeros_like(lost)
        if correction is not None and repacked.correction is not None:
            shift = _lost(correction, repacked.correction)
        if not (lost.any() or shift.any()):
            return
        codes = repacked.codes.reshape(len(lost), -1)
        step = max(1, _SLICE_WEIGHTS // repacked.block)
        for start in range(0, len(lost), step):
            part = slice(start, start + step)
            centred = _codes(codes[part], repacked.bits) - np.float32(1 << (repacked.bits - 1))
            self._add_errors((centred * lost[part] + shift[part]).reshape(-1))

    def add_expert_scales(self, part: ZeroPointed, stored: Narrow) -> None:
        lost = stored.astype(np.float32).reshape(part.scales.shape) - part.scales
        centred = part.codes.astype(np.float32) - part.zeros.astype(np.float32)[..., None]
        self._add_errors((centred * lost[..., None]).reshape(-1))

    def merge(self, other: Rounding) -> None:
        self.largest = max(self.largest, other.largest)
        self.squares += other.squares
        self.count += other.count

    def _add_errors(self, errors: npt.NDArray[Any]) -> None:
        self.largest = max(self.largest, float(np.abs(errors).max(initial=0)))
        self.squares += float(np.dot(errors, errors))

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def _lost(narrow: Narrow, exact: Floats) -> npt.NDArray[Any]:
    """One number per block, as a column."""
    return (narrow.astype(np.float32).reshape(-1) - exact.reshape(-1))[:, None]


def _codes(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[Any]:
    """Unsigned codes as fp32, low bits first."""
    if bits == 8:
        return packed.astype(np.float32)
    mask, places = np.uint8((1 << bits) - 1), range(0, 8, bits)
    parts = [(packed >> np.uint8(place)) & mask for place in places]
    return np.stack(parts, axis=-1).reshape(len(packed), -1).astype(np.float32)


def stored(numbers: npt.NDArray[Any], piece: Piece, source: str) -> npt.NDArray[Any]:
    """The numbers as the piece has them. Raises Unsupported for what fp16 cannot hold."""
    if piece.item != "float16" or numbers.dtype == np.float16:
        return numbers
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float16)
    if not np.isfinite(narrow).all() and np.isfinite(numbers).all():
        raise Unsupported(f"tensor {source!r} holds numbers beyond the range of fp16")
    return narrow
