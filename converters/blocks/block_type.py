"""What every GGML block type is: a named class that gives raw codes and scales; the rest follows.

A quantised weight is `s*q - m` with `q = u - zero`, `u` the unsigned code in the file. `centre` is
the `u` that is stored as the implicit zero point `2**(bits-1)` of a MatMulNBits node without zero
points; where the type has mins, the correction `C = centre*s - m` makes the sum exact again:
`s*(stored - 2**(bits-1)) + C = s*(u - centre) + centre*s - m`.
"""

from __future__ import annotations

import abc
import functools
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Form(NamedTuple):
    """How a type is written for MatMulNBits: code bits, weights per scale, mins by a correction."""

    bits: int
    block: int
    has_correction: bool


class Codes(NamedTuple):
    """Weights `scale*q - minimum`: q int16 [n, block_size], the others f32 [n, block_size/sub]."""

    q: npt.NDArray[np.int16]
    scale: Floats
    minimum: Floats | None
    sub: int


class Levels(NamedTuple):
    """Weights `scale*(code - zero) - minimum`: code u8 [n, block_size], the others as in `Codes`."""

    code: Bytes
    zero: int
    scale: Floats
    minimum: Floats | None
    sub: int


class Repacked(NamedTuple):
    """MatMulNBits layout, for k = block_size/block groups of each of n GGML blocks.

    `codes` u8 [n, k, block*bits/8], low bits first; `scales` f32 [n, k]; `correction` f32 [n, k] or
    None. A weight is `scale*(code - 2**(bits-1)) + correction`; `rounding` f32 [n, k] is what fp32
    lost of the correction (0 nearly always: scale and minimum have few bits).
    """

    bits: int
    block: int
    codes: Bytes
    scales: Floats
    correction: Floats | None
    rounding: Floats | None = None


class BlockType(abc.ABC):
    """A type that stores `block_size` weights in `type_size` bytes. `form` is None for floats."""

    name: ClassVar[str]
    block_size: ClassVar[int]
    type_size: ClassVar[int]
    form: ClassVar[Form | None] = None

    def __init_subclass__(cls, *, is_abstract: bool = False) -> None:
        super().__init_subclass__()
        if not is_abstract:
            BLOCK_TYPES[cls.name] = cls()

    @abc.abstractmethod
    def dequantize(self, raw: Bytes) -> Floats:
        """Blocks u8 [n, type_size] to weights f32 [n, block_size], as ggml's reference does."""

    def unpack(self, raw: Bytes) -> Codes:
        """Blocks u8 [n, type_size] to integer codes. Raises TypeError where the type has none."""
        raise TypeError(f"{self.name} has no codes")

    def repack(self, raw: Bytes) -> Repacked:
        """Blocks u8 [n, type_size] to MatMulNBits codes. Raises TypeError as `unpack`."""
        raise TypeError(f"{self.name} has no codes")

    def _checked(self, raw: Bytes) -> Bytes:
        if raw.dtype != np.uint8 or raw.ndim != 2 or raw.shape[1] != self.type_size:
            raise ValueError(f"{self.name} blocks are u8 [n, {self.type_size}], not {raw.shape}")
        return np.ascontiguousarray(raw)


BLOCK_TYPES: dict[str, BlockType] = {}

# What NumPy moves in one step, by bytes; complex numbers are only carried.
_ITEMS: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128,
}  # fmt: skip


class CodedBlockType(BlockType, is_abstract=True):
    """A quantised type. Its class gives `_codes` and `_scales`; everything else is derived here."""

    bits: ClassVar[int]
    has_minimum: ClassVar[bool]
    sub: ClassVar[int]  # weights that share one scale
    zero: ClassVar[int]
    centre: ClassVar[int]

    def __init_subclass__(
        cls, *, bits: int = 0, zero: int = 0, centre: int | None = None, is_abstract: bool = False
    ) -> None:
        """`bits` per stored code; `centre` is given by types with mins, and is `zero` elsewhere."""
        if not is_abstract:
            cls.bits, cls.zero, cls.has_minimum = bits, zero, centre is not None
            cls.centre = zero if centre is None else centre
            cls.form = Form(bits, cls.sub, cls.has_minimum)
        super().__init_subclass__(is_abstract=is_abstract)

    @abc.abstractmethod
    def _codes(self, raw: Bytes) -> Bytes:
        """The unsigned codes in the order of the weights: any shape that flattens to n*block_size."""

    @abc.abstractmethod
    def _scales(self, raw: Bytes) -> tuple[Floats, Floats | None]:
        """Scale and minimum (None without mins), f32 [n, block_size/sub]."""

    def unpack(self, raw: Bytes) -> Codes:
        raw = self._checked(raw)
        codes = self._codes(raw).reshape(len(raw), self.block_size).astype(np.int16)
        scale, minimum = self._scales(raw)
        return Codes(codes - np.int16(self.zero), scale, minimum, self.sub)

    def levels(self, raw: Bytes) -> Levels:
        """Blocks u8 [n, type_size] to unsigned codes, no wider than the file's own."""
        return Levels(self.level_codes(raw), self.zero, *self.scales(raw), self.sub)

    def level_codes(self, raw: Bytes) -> Bytes:
        """The codes of `levels` alone."""
        raw = self._checked(raw)
        return self._codes(raw).reshape(len(raw), self.block_size)

    def scales(self, raw: Bytes) -> tuple[Floats, Floats | None]:
        """The scale and minimum of `levels` alone."""
        return self._scales(self._checked(raw))

    def packed(self, raw: Bytes) -> Bytes:
        """The codes of `levels` in one stream of `bits` each, low bits first: u8, flat."""
        return pack_codes(self._codes(self._checked(raw)), self.bits)

    def dequantize(self, raw: Bytes) -> Floats:
        q, scale, minimum, sub = self.unpack(raw)
        with np.errstate(invalid="ignore", over="ignore"):
            weights = q.reshape(len(q), -1, sub).astype(np.float32) * scale[:, :, None]
            if minimum is not None:
                weights -= minimum[:, :, None]
        return weights.reshape(len(q), self.block_size)

    def repack(self, raw: Bytes) -> Repacked:
        raw = self._checked(raw)
        groups = self.block_size // self.sub
        codes = self._stored(raw).reshape(len(raw), groups, self.sub * self.bits // 8)
        scales, minimum = self._scales(raw)
        if minimum is None:
            return Repacked(self.bits, self.sub, codes, scales, None)
        shifted = _shifted(scales, np.float32(self.centre), minimum)
        return Repacked(self.bits, self.sub, codes, scales, *shifted)

    def _stored(self, raw: Bytes) -> Bytes:
        if self.bits == 4 and self.centre == 8:
            return self.packed(raw)
        codes = self._codes(raw)
        lift = (1 << (self.bits - 1)) - self.centre
        if lift:
            codes += np.uint8(lift)
        return codes if self.bits == 8 else pack_codes(codes, self.bits)


def _shifted(scale: Floats, centre: np.float32, minimum: Floats) -> tuple[Floats, Floats]:
    """`centre*scale - minimum` in fp32, and exactly what that lost (Knuth's two-sum).

    The product is exact: `centre` is a power of two.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product, found, lost = (np.empty_like(scale) for _ in range(3))
        np.multiply(scale, centre, out=product)
        np.subtract(product, minimum, out=found)
        virtual = found - product
        np.subtract(product, found - virtual, out=lost)
        lost -= minimum + virtual
    return found, lost


def pack_codes(codes: Bytes, bits: int) -> Bytes:
    """Codes below 2^bits to one stream of bits, low bits first: u8, flat, 8 codes in `bits` bytes.

    Neighbours are joined in lanes of two, four and eight bytes. May overwrite `codes`.
    """
    lanes = np.ascontiguousarray(codes).reshape(-1).view(np.uint64)
    if bits == 8:
        return lanes.view(np.uint8)
    if bits == 4:
        lanes |= lanes >> np.uint64(4)
        return lanes.view(np.uint16).astype(np.uint8)
    if bits == 2:
        lanes |= lanes >> np.uint64(6)
        lanes |= lanes >> np.uint64(12)
        return lanes.view(np.uint32).astype(np.uint8)
    return _joined(lanes, bits, (8, 16, 32))


def pack_lanes(lanes: npt.NDArray[np.uint64], bits: int) -> Bytes:
    """As `pack_codes`, of two codes in each lane of two bytes, the first one in its low bits."""
    return lanes.view(np.uint8) if bits == 8 else _joined(lanes, bits, (16, 32))


def _joined(lanes: npt.NDArray[np.uint64], bits: int, widths: tuple[int, ...]) -> Bytes:
    for width in widths:
        held = bits * width // 8
        low, shift = _repeated((1 << held) - 1, 2 * width), np.uint64(width - held)
        upper = (lanes >> shift) & (low << np.uint64(held))
        lanes &= low
        lanes |= upper
    held = np.dtype({"names": ["x"], "formats": [f"V{bits}"], "itemsize": 8})
    return lanes.view(held)["x"].copy().view(np.uint8)


def _repeated(value: int, width: int) -> np.uint64:
    """In every lane of `width` bits of a word."""
    return np.uint64(sum(value << shift for shift in range(0, 64, width)))


def half_floats(raw: Bytes, offset: int, count: int = 1) -> Floats:
    """`count` fp16 numbers at byte `offset` of each block, as f32 [n, count]."""
    with np.errstate(invalid="ignore"):
        return words(raw, offset, offset + 2 * count, np.float16).astype(np.float32)


def words(raw: Bytes, start: int, stop: int, dtype: npt.DTypeLike = np.uint64) -> np.ndarray:
    """The bytes from `start` to `stop` of each block, copied, as [n, words] of `dtype`."""
    item = _ITEMS.get(stop - start)
    if item is None:
        return np.ascontiguousarray(raw[:, start:stop]).view(dtype)
    return raw.view(_item_at(start, item, raw.shape[1]))["x"].copy().view(dtype)


@functools.lru_cache(maxsize=256)
def _item_at(start: int, item: type[np.generic], width: int) -> np.dtype[np.void]:
    """Blocks of `width` bytes of which only the item `x` counts."""
    return np.dtype({"names": ["x"], "formats": [item], "offsets": [start], "itemsize": width})


def splat(byte: int) -> np.uint64:
    """A byte repeated in all eight bytes of a word."""
    return np.uint64(byte * 0x0101010101010101)


def bit_field(lanes: np.ndarray, shift: int, mask: int) -> np.ndarray:
    """`(byte >> shift) & mask` for each byte of u64 lanes; mask and shift stay within a byte."""
    return (lanes >> np.uint64(shift)) & splat(mask) if shift else lanes & splat(mask)


def strips(lanes: np.ndarray, run: int, bits: int, lift: int = 0) -> np.ndarray:
    """u64 [n, w] lanes in runs of `run` lanes to codes u64 [n, w/run, 8/bits, run].

    Each code is moved up by `lift` bits of its byte.
    """
    item = _ITEMS.get(8 * run) or np.dtype((np.void, 8 * run))
    codes = np.empty((lanes.size // run, 8 // bits), item)
    mask = splat(((1 << bits) - 1) << lift)
    for field in range(8 // bits):
        down = field * bits - lift
        moved = lanes >> np.uint64(down) if down > 0 else lanes << np.uint64(-down)
        moved &= mask
        codes[:, field] = moved.reshape(-1).view(item)
    return codes.view(np.uint64).reshape(len(lanes), lanes.shape[1] // run, 8 // bits, run)


def nibble_halves(lanes: np.ndarray, run: int) -> np.ndarray:
    """Runs of `run` u64 lanes to their low nibbles, then their high ones: u64 [n, ...]."""
    return strips(lanes, run, 4)


def paired_halves(lanes: np.ndarray, run: int) -> Bytes:
    """`pack_codes` of `nibble_halves`, flat, without taking the pairs apart; `run` is 1, 2 or 4."""
    pairs = lanes.reshape(-1).view(np.uint16)
    item = _ITEMS[4 * run]
    packed = np.empty(2 * lanes.size // run, item)
    middle = pairs >> np.uint16(4)
    low = pairs & np.uint16(0x0F)
    low |= middle & np.uint16(0xF0)
    packed[0::2] = low.astype(np.uint8).view(item)
    middle &= np.uint16(0x0F)
    top = pairs >> np.uint16(8)
    top &= np.uint16(0xF0)
    middle |= top
    packed[1::2] = middle.astype(np.uint8).view(item)
    return packed.view(np.uint8)


def entries(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`table[index]`, three times as fast for indices narrower than a pointer."""
    return table.take(index.astype(np.intp), mode="clip")


def nibble_pairs(raw: Bytes, start: int, stop: int) -> Bytes:
    """The bytes from `start` to `stop` of each block to their low and high halves in turn."""
    both = words(raw, start, stop, np.uint8).astype(np.uint16)
    both |= both << np.uint16(4)
    return (both & np.uint16(0x0F0F)).view(np.uint8)


def spread(fields: np.ndarray, bits: int) -> Bytes:
    """Each integer's four lowest fields of so many bits (at most 8) to bytes: u8 [n, 4 · fields]."""
    wide, mask = fields.astype(np.uint32), (1 << bits) - 1
    found = wide & np.uint32(mask)
    for place in range(1, 4):
        field = wide & np.uint32(mask << (place * bits))
        found |= field << np.uint32(place * (8 - bits))
    return found.view(np.uint8)


def looked_up(lanes: np.ndarray, run: int, table: bytes) -> Bytes:
    """The table's bytes for `nibble_halves` of runs of one or two lanes, flat; four at a time."""
    both = entries(_pairs(table), lanes.reshape(-1).view(np.uint16)).view(np.uint16)
    item = _ITEMS[8 * run]
    found = np.empty(2 * lanes.size // run, item)
    for half in range(2):
        found[half::2] = both[half::2].copy().view(item)
    return found.view(np.uint8)


@functools.cache
def _pairs(table: bytes) -> np.ndarray:
    """u32 [65536]: for each two bytes what their low halves stand for, then their high ones."""
    levels, index = np.frombuffer(table, np.uint8), np.arange(1 << 16)
    halves = [(index >> shift) & 15 for shift in (0, 8, 4, 12)]
    return np.stack([levels[half] for half in halves], axis=1).view("<u4").reshape(-1)
