"""The KV cache: rows of one engine, in reserved memory that becomes real only where it is touched.

All access to keys and values goes through this file: a `Row` is the only handle the engine has.
Each plane (one block's keys or values) is [rows, kv heads, capacity, head size]; rows lie side by
side, so that n neighbouring rows are one tensor and one row is a view of it. Memory is anonymous and
not reserved against swap; a released row gives its pages back to the system.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.types import EngineError

# Python names the flag only in later versions; the number is Linux's and macOS's own.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", {"linux": 0x4000, "darwin": 0x40}.get(sys.platform, 0))
_GIVE_BACK = mmap.MADV_DONTNEED if sys.platform == "linux" else getattr(mmap, "MADV_FREE", 0)


class Plane(NamedTuple):
    """One cached tensor of the graph; `size` is the head size."""

    past: str
    present: str
    heads: int
    size: int


class PlaneView(NamedTuple):
    """What a binding needs to hand some rows of a plane to the runtime, without a copy."""

    past: str
    present: str
    shape: tuple[int, int, int, int]
    address: int


class Row:
    """A taken row: where it is and how many positions hold something. Lower `length` to roll back."""

    __slots__ = ("copied", "index", "length", "peak", "reserved", "target")

    def __init__(self, index: int, reserved: int) -> None:
        self.index = index
        self.reserved = reserved
        self.length = 0
        self.peak = 0
        self.target = -1  # where compaction is copying it to
        self.copied = 0

    def advance(self, positions: int) -> None:
        """A run has written `positions` more."""
        self.length += positions
        self.peak = max(self.peak, self.length)


class KeyValueRows:
    """Owns the memory and says which rows are free.

    `capacity` is the most positions a row can hold, `budget_bytes` bounds what all taken rows may
    come to touch. Raises EngineError("memory") where the address space cannot be had.
    """

    def __init__(
        self,
        planes: Sequence[Plane],
        *,
        rows: int,
        capacity: int,
        dtype: np.dtype,
        budget_bytes: int,
    ) -> None:
        self.count = rows
        self.capacity = capacity
        self._planes = tuple(planes)
        self._dtype = dtype
        self._heads_by_size: Counter[int] = Counter()
        for plane in self._planes:
            self._heads_by_size[plane.size] += plane.heads
        self._stride = _page_aligned_positions(self._planes, capacity, dtype.itemsize)
        self._budget_bytes = budget_bytes
        self.position_bytes = sum(p.heads * p.size for p in self._planes) * dtype.itemsize
        self._memory = _reserve(rows * self._stride * self.position_bytes)
        self._offsets = tuple(self._plane_offsets())
        self._views = self._make_views()
        self._taken: set[Row] = set()
        self._free = set(range(rows))

    def _row_bytes(self, plane: Plane) -> int:
        return plane.heads * self._stride * plane.size * self._dtype.itemsize

    def _plane_offsets(self) -> Iterator[int]:
        offset = 0
        for plane in self._planes:
            yield offset
            offset += self.count * self._row_bytes(plane)

    def _make_views(self) -> list[NDArray[np.generic]]:
        views: list[NDArray[np.generic]] = []
        for plane, offset in zip(self._planes, self._offsets, strict=True):
            shape = (self.count, plane.heads, self._stride, plane.size)
            flat = np.frombuffer(self._memory, self._dtype, math.prod(shape), offset)
            views.append(flat.reshape(shape))
        return views

    def take(self, positions: int) -> Row | None:
        """The lowest free row, with room promised for `positions`; None when that must wait."""
        reserved = sum(row.reserved for row in self._taken) + positions
        if not self._free or reserved * self.position_bytes > self._budget_bytes:
            return None
        row = Row(min(self._free), positions)
        self._free.remove(row.index)
        self._taken.add(row)
        return row

    def release(self, row: Row) -> None:
        """Gives the row's memory back. The handle is dead afterwards; twice is a no-op."""
        if row not in self._taken:
            return
        self._taken.remove(row)
        self._vacate(row.index)
        if row.target >= 0:
            self._vacate(row.target)

    def _vacate(self, index: int) -> None:
        for plane, offset in zip(self._planes, self._offsets, strict=True):
            size = self._row_bytes(plane)
            self._memory.madvise(_GIVE_BACK, offset + index * size, size)
        self._free.add(index)

    def views(self, first: int, count: int) -> Iterator[PlaneView]:
        """Rows `first` to `first + count - 1` of every plane."""
        for plane, view in zip(self._planes, self._views, strict=True):
            shape = (count, plane.heads, self._stride, plane.size)
            address = view.ctypes.data + first * self._row_bytes(plane)
            yield PlaneView(plane.past, plane.present, shape, address)

    def touched_bytes(self) -> int:
        """Memory behind the taken rows, counted in whole pages."""
        return sum(self._touched(row.peak) + self._touched(row.copied) for row in self._taken)

    def _touched(self, positions: int) -> int:
        pages = 0
        for size, heads in self._heads_by_size.items():
            pages += heads * -(-positions * size * self._dtype.itemsize // mmap.PAGESIZE)
        return pages * mmap.PAGESIZE

    def compact(self, active: Sequence[Row], budget_bytes: int) -> None:
        """Moves active rows downwards into holes until they are neighbours.

        Copies at most `budget_bytes`. A row too long for one call is copied over several and stays
        where it is until the copy is whole: what it holds never changes meanwhile, it only grows.
        """
        positions = max(1, budget_bytes // self.position_bytes)
        while positions > 0 and len(contiguous(active)) > 1:
            row = max(active, key=lambda row: row.index)
            if row.target < 0 and not self._begin_move(row):
                return
            copied = min(positions, row.length - row.copied)
            self._copy(row, copied)
            positions -= max(copied, 1)

    def _begin_move(self, row: Row) -> bool:
        target = min(self._free, default=row.index)
        if target >= row.index:
            return False
        self._free.remove(target)
        row.target, row.copied = target, 0
        return True

    def _copy(self, row: Row, positions: int) -> None:
        end = row.copied + positions
        for view in self._views:
            view[row.target, :, row.copied : end] = view[row.index, :, row.copied : end]
        row.copied = end
        if end >= row.length:
            self._vacate(row.index)
            row.index, row.target, row.copied, row.peak = row.target, -1, 0, row.length

    def close(self) -> None:
        """Drops the views; the system takes the memory back once nothing points into it."""
        self._taken.clear()
        self._free.clear()
        self._views = []
        del self._memory


def contiguous(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by index, cut where neighbours are missing."""
    runs: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.index):
        if runs and runs[-1][-1].index + 1 == row.index:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _page_aligned_positions(planes: Sequence[Plane], capacity: int, itemsize: int) -> int:
    """The capacity rounded up so that every head of every row begins on a page."""
    step = 1
    for plane in planes:
        per_position = plane.size * itemsize
        step = math.lcm(step, mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, per_position))
    return -(-capacity // step) * step


def _reserve(size: int) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    try:
        memory = mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=flags)
    except OSError as error:
        message = f"no room for a KV cache of {size} bytes: {error.strerror}"
        raise EngineError("memory", message) from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # else a touched byte costs 2 MB
    return memory
