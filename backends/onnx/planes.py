"""The memory of a KV cache: one plane per cached tensor, [rows, heads, stride, head size].

`PlaneStore` is what `KeyValueRows` asks of it, by row and position; who owns which row is decided
there. `HostPlanes` reserves every row at its full length, since only touched pages are real.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.onnx.row_memory import RowMemory


class Plane(NamedTuple):
    """One cached tensor of the graph; `size` is the head size."""

    past: str
    present: str
    heads: int
    size: int


class PlaneStore(Protocol):
    """`stride` is how many positions a row has now; `can_move` whether `move` costs no copy."""

    @property
    def stride(self) -> int: ...

    @property
    def can_move(self) -> bool: ...

    def address(self, plane: int, row: int) -> int:
        """Where a row of a plane begins; good until the store grows."""
        ...

    def copy(self, source: int, target: int, begin: int, end: int) -> None:
        """Positions of one row to the same positions of another, in every plane."""
        ...

    def move(self, source: int, target: int) -> None:
        """A whole row, whose place is empty afterwards."""
        ...

    def give_back(self, row: int, begin: int, end: int) -> None:
        """What lies at these positions is not needed any more."""
        ...

    def touched(self, positions: int) -> int:
        """Bytes that so many positions of one row take."""
        ...

    def grow(self, positions: int, held: Mapping[int, int]) -> bool:
        """Makes rows hold so many; keeps the first `held[row]` of each. False: they did already."""
        ...

    def read(self, row: int, begin: int, end: int) -> bytes:
        """These positions of every plane, one after the other: [heads, positions, size]."""
        ...

    def write(self, row: int, begin: int, data: bytes, positions: int) -> None:
        """The first `positions` of what `read` gave, to where `begin` is."""
        ...

    def close(self) -> None: ...


class HostPlanes:
    """Raises EngineError("memory") where the address space cannot be had."""

    def __init__(
        self, planes: Sequence[Plane], *, rows: int, capacity: int, dtype: np.dtype
    ) -> None:
        self._planes = tuple(planes)
        self._dtype = dtype
        self._rows = rows
        self.stride = _page_aligned_positions(self._planes, capacity, dtype.itemsize)
        self._heads_by_size: Counter[int] = Counter()
        for plane in self._planes:
            self._heads_by_size[plane.size] += plane.heads
        numbers = sum(plane.heads * plane.size for plane in self._planes)
        self._position_bytes = max(1, numbers * dtype.itemsize)
        self._memory = RowMemory(rows * self.stride * self._position_bytes)
        self._offsets = tuple(self._plane_offsets())
        self._views = self._make_views()

    @property
    def can_move(self) -> bool:
        return self._memory.can_move

    def _row_bytes(self, plane: Plane) -> int:
        return plane.heads * self.stride * plane.size * self._dtype.itemsize

    def _plane_offsets(self) -> Iterator[int]:
        offset = 0
        for plane in self._planes:
            yield offset
            offset += self._rows * self._row_bytes(plane)

    def _make_views(self) -> list[NDArray[np.generic]]:
        views: list[NDArray[np.generic]] = []
        for plane, offset in zip(self._planes, self._offsets, strict=True):
            shape = (self._rows, plane.heads, self.stride, plane.size)
            views.append(self._memory.array(self._dtype, shape, offset))
        return views

    def address(self, plane: int, row: int) -> int:
        return self._views[plane].ctypes.data + row * self._row_bytes(self._planes[plane])

    def copy(self, source: int, target: int, begin: int, end: int) -> None:
        for view in self._views:
            view[target, :, begin:end] = view[source, :, begin:end]

    def move(self, source: int, target: int) -> None:
        for plane, offset in zip(self._planes, self._offsets, strict=True):
            size = self._row_bytes(plane)
            self._memory.move(offset + source * size, offset + target * size, size)

    def give_back(self, row: int, begin: int, end: int) -> None:
        """Whole pages behind `begin`."""
        for plane, offset in zip(self._planes, self._offsets, strict=True):
            item = plane.size * self._dtype.itemsize
            first = offset + row * self._row_bytes(plane)
            if begin == 0 and end >= self.stride:
                self._memory.give_back(first, self._row_bytes(plane))
                continue
            start, stop = _whole_pages(begin * item), _whole_pages(end * item)
            for head in range(plane.heads):
                self._memory.give_back(first + head * self.stride * item + start, stop - start)

    def touched(self, positions: int) -> int:
        """In whole pages."""
        item = self._dtype.itemsize
        sizes = self._heads_by_size.items()
        return sum(heads * _whole_pages(positions * size * item) for size, heads in sizes)

    def grow(self, positions: int, held: Mapping[int, int]) -> bool:
        return False

    def read(self, row: int, begin: int, end: int) -> bytes:
        return b"".join(view[row, :, begin:end].tobytes() for view in self._views)

    def write(self, row: int, begin: int, data: bytes, positions: int) -> None:
        held, offset = len(data) // self._position_bytes, 0
        for plane, view in zip(self._planes, self._views, strict=True):
            count = plane.heads * held * plane.size
            block = np.frombuffer(data, self._dtype, count, offset)
            offset += count * self._dtype.itemsize
            shaped = block.reshape(plane.heads, held, plane.size)
            view[row, :, begin : begin + positions] = shaped[:, :positions]

    def close(self) -> None:
        """Drops the views; the system takes the memory back once nothing points into it."""
        self._views = []
        del self._memory


def _page_aligned_positions(planes: Sequence[Plane], capacity: int, itemsize: int) -> int:
    """The capacity rounded up so that every head of every row begins on a page."""
    step = 1
    for plane in planes:
        per_position = plane.size * itemsize
        step = math.lcm(step, mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, per_position))
    return -(-capacity // step) * step


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
