"""What a weight loses on its way into a file: nothing as a rule, and measured where it does."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from converters.blocks import Repacked
from converters.blocks.block_type import bit_field
from converters.blocks.moments import moments_of, moments_of_nibbles
from converters.errors import Unsupported
from converters.targets.onnx.expert_weights import ZeroPointed
from converters.targets.onnx.pieces import Piece

Floats = npt.NDArray[np.float32]
Narrow = npt.NDArray[Any]


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
            squares = part.squares
            if squares is None:
                squares = np.square(part.errors, dtype=np.float64) * part.codes.shape[2]
            self.squares += float(squares.sum(dtype=np.float64))

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
        zero = np.float32(1 << (repacked.bits - 1))
        codes = repacked.codes.reshape(len(lost), -1)
        self._add_lines(_Lines(codes, repacked.bits, np.full_like(lost, zero), lost, shift))

    def add_expert_scales(self, part: ZeroPointed, stored: Narrow) -> None:
        lost, zeros = _lost(stored, part.scales), part.zeros.reshape(-1).astype(np.float32)
        codes = part.codes.reshape(len(lost), -1)
        self._add_lines(_Lines(codes, 8, zeros, lost, np.zeros_like(lost)))

    def _add_lines(self, lines: _Lines) -> None:
        if lines.slope.any() or lines.shift.any():
            self.squares += lines.squares()
            self.largest = lines.largest(self.largest)

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


class _Lines(NamedTuple):
    """Errors `slope * (code - zero) + shift`: codes u8 [groups, bytes], the others f32 [groups]."""

    codes: npt.NDArray[np.uint8]
    bits: int
    zero: Floats
    slope: Floats
    shift: Floats

    def squares(self) -> float:
        """The sum of all errors' squares, from the codes' sums and squares."""
        size = self.codes.shape[1] * 8 // self.bits
        if self.bits == 4:
            moments = moments_of_nibbles(self.codes, size)
        else:
            moments = moments_of(_unpacked(self.codes, self.bits), size, (1 << self.bits) - 1)
        zero, slope, shift = (each.astype(np.float64) for each in self[2:])
        sums = moments.sums - size * zero
        squares = moments.squares - zero * (moments.sums + sums)
        total = slope * (slope * squares + 2 * shift * sums) + size * shift * shift
        return max(float(total.sum()), 0.0)

    def largest(self, known: float) -> float:
        """The greatest error, or `known` where none is above: few groups can hold one that is."""
        codes = self.codes.reshape(-1).view(np.uint64)
        fields = range(0, 8, self.bits)
        parts = [bit_field(codes, at, (1 << self.bits) - 1).view(np.uint8) for at in fields]
        least, most = min(int(each.min()) for each in parts), max(int(each.max()) for each in parts)
        reach = np.maximum(np.abs(least - self.zero), np.abs(most - self.zero))
        bound = np.abs(self.slope) * reach + np.abs(self.shift)
        known = max(known, self._largest_of(np.array([bound.argmax()])))
        return max(known, self._largest_of(np.flatnonzero(bound > known)))

    def _largest_of(self, groups: npt.NDArray[np.intp]) -> float:
        zero, slope, shift = (each[groups, None] for each in self[2:])
        centred = _unpacked(self.codes[groups], self.bits).astype(np.float32) - zero
        return float(np.abs(centred * slope + shift).max(initial=0))


def _lost(narrow: Narrow, exact: Floats) -> Floats:
    """One number per group."""
    return narrow.astype(np.float32).reshape(-1) - exact.reshape(-1)


def _unpacked(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """A byte for each code, low bits first."""
    if bits == 8:
        return packed
    mask, places = np.uint8((1 << bits) - 1), range(0, 8, bits)
    parts = [(packed >> np.uint8(place)) & mask for place in places]
    return np.stack(parts, axis=-1).reshape(len(packed), len(parts) * packed.shape[1])


def stored(numbers: npt.NDArray[Any], piece: Piece, source: str) -> npt.NDArray[Any]:
    """The numbers as the piece has them. Raises Unsupported for what fp16 cannot hold."""
    if piece.item != "float16" or numbers.dtype == np.float16:
        return numbers
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float16)
    if not np.isfinite(narrow).all() and np.isfinite(numbers).all():
        raise Unsupported(f"tensor {source!r} holds numbers beyond the range of fp16")
    return narrow
