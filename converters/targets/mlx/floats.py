"""fp32 numbers in a model's own type, and what that costs. NumPy has no bfloat16: its bits are kept."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from converters.errors import MalformedFile, Unsupported
from converters.targets.mlx.forms import Number

# fp32's bits of fp16's least normal number, and how far the others that round to normal ones reach.
_LEAST_NORMAL = np.uint32(0x38800000)
_NORMAL_SPAN = np.uint32(0x477FF000) - _LEAST_NORMAL
# What their exponents differ by.
_REBIASED = np.uint32((127 - 15) << 23)
Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.float32 | np.float16 | np.uint16]
Way = Literal["nearest", "up", "down"]


class Errors(msgspec.Struct):
    """Largest and summed squared distance from the fp32 dequantisation, over `count` weights."""

    largest: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, differences: Floats) -> None:
        flat = differences.reshape(-1)
        self.count += flat.size
        self.largest = max(self.largest, float(flat.max(initial=0)), -float(flat.min(initial=0)))
        self.squares += float(np.dot(flat, flat))

    def add_moments(self, largest: float, squares: float, count: int) -> None:
        self.largest = max(self.largest, largest)
        self.squares += squares
        self.count += count

    def merge(self, other: Errors) -> None:
        self.add_moments(other.largest, other.squares, other.count)

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def stored(numbers: Floats, number: Number) -> Stored:
    """Rounded to nearest, ties to even; infinite where the type's range ends."""
    if number == "F32":
        return numbers
    with np.errstate(over="ignore", invalid="ignore"):
        if number == "F16":
            return _halves(numbers)
        bits = np.ascontiguousarray(numbers).view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return ((bits + half) >> np.uint32(16)).astype(np.uint16)


def rounded(
    exact: Floats, name: str, number: Number, way: Way = "nearest"
) -> tuple[Stored, Floats]:
    """What is stored of the tensor `name`, and that as fp32.

    Raises MalformedFile for what is not finite, Unsupported for what the type cannot hold.
    """
    numbers = stored(exact, number)
    kept = widened(numbers)
    if way != "nearest" and number != "F32":
        off = exact > kept if way == "up" else exact < kept
        if off.any():
            _step(numbers, off, way)
            kept = widened(numbers)
    _check_range(exact, kept, name, number)
    return numbers, kept


def _step(numbers: Stored, off: npt.NDArray[np.bool_], way: Way) -> None:
    """Each that is off, one step on.

    The bits of floats are in the order of their magnitude. One that was rounded to zero keeps its
    sign, so no step leads across zero.
    """
    bits = numbers.view(np.uint16)
    grows = (bits >> np.uint16(15)) ^ np.uint16(way == "up")
    bits += off * (np.uint16(2) * grows - np.uint16(1))


def widened(numbers: Stored) -> Floats:
    """What is stored, as fp32; 16-bit integers are the bits of a bfloat16."""
    if numbers.dtype == np.uint16:
        return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return _of_halves(numbers) if numbers.dtype == np.float16 else numbers.astype(np.float32)


def _halves(numbers: Floats) -> npt.NDArray[np.float16]:
    """Rounded to nearest, ties to even: by integers where all are normal, which is four times as fast."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if not (magnitude - _LEAST_NORMAL < _NORMAL_SPAN).all():
        return numbers.astype(np.float16)
    magnitude += (magnitude >> np.uint32(13)) & np.uint32(1)
    magnitude += np.uint32(0xFFF)
    magnitude -= _REBIASED
    magnitude >>= np.uint32(13)
    magnitude |= (bits >> np.uint32(16)) & np.uint32(0x8000)
    return magnitude.astype(np.uint16).view(np.float16)


def _of_halves(numbers: Stored) -> Floats:
    """As fp32, exactly: by integers where all are normal."""
    bits = np.ascontiguousarray(numbers).view(np.uint16)
    exponent = bits & np.uint16(0x7C00)
    exponent -= np.uint16(0x0400)
    if not (exponent < np.uint16(0x7800)).all():
        with np.errstate(invalid="ignore"):
            return numbers.astype(np.float32)
    wide = bits.astype(np.uint32)
    sign = wide & np.uint32(0x8000)
    wide -= sign
    wide <<= np.uint32(13)
    wide += _REBIASED
    wide |= sign << np.uint32(16)
    return wide.view(np.float32)


def _check_range(exact: Floats, kept: Floats, name: str, number: Number) -> None:
    if np.isfinite(kept).all():
        return
    if not np.isfinite(exact).all():
        raise MalformedFile(f"tensor {name!r} holds a number that is not finite")
    raise Unsupported(f"tensor {name!r} holds a number that is too large for {number}")
