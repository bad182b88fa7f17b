"""The KV cache in a device's memory: real from the first byte, so rows begin short and double.

Growing makes each plane anew and copies what rows hold, one plane at a time: no more than one is
there twice. That what all rows may come to is there was checked when the engine was planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from backends.onnx.device import Buffer, Device
from backends.onnx.planes import Plane

FIRST_POSITIONS = 256


class DevicePlanes:
    """A `PlaneStore`. Raises EngineError("device") where the device says no."""

    def __init__(
        self,
        planes: Sequence[Plane],
        device: Device,
        *,
        rows: int,
        capacity: int,
        dtype: np.dtype,
        first_positions: int = FIRST_POSITIONS,
    ) -> None:
        self._planes = tuple(planes)
        self._device = device
        self._rows = rows
        self._capacity = capacity
        self._item = dtype.itemsize
        self.stride = min(capacity, first_positions)
        self._buffers = [self._allocate(plane, self.stride) for plane in self._planes]

    @property
    def can_move(self) -> bool:
        return False

    def _allocate(self, plane: Plane, stride: int) -> Buffer:
        return self._device.allocate(
            max(1, self._rows * plane.heads * stride * plane.size * self._item)
        )

    def address(self, plane: int, row: int) -> int:
        shape = self._planes[plane]
        row_bytes = shape.heads * self.stride * shape.size * self._item
        return self._buffers[plane].address + row * row_bytes

    def copy(self, source: int, target: int, begin: int, end: int) -> None:
        for index, plane in enumerate(self._planes):
            position = plane.size * self._item
            step = self.stride * position
            self._device.copy(
                self.address(index, source) + begin * position,
                self.address(index, target) + begin * position,
                (end - begin) * position,
                lines=plane.heads,
                source_step=step,
                target_step=step,
            )

    def move(self, source: int, target: int) -> None:
        raise NotImplementedError("a device's pages cannot be moved")

    def give_back(self, row: int, begin: int, end: int) -> None:
        """Nothing comes back: the rows are one buffer."""

    def touched(self, positions: int) -> int:
        numbers = sum(plane.heads * plane.size for plane in self._planes)
        return positions * numbers * self._item

    def grow(self, positions: int, held: Mapping[int, int]) -> bool:
        if positions <= self.stride:
            return False
        stride = self.stride
        while stride < positions:
            stride *= 2
        stride = min(stride, max(self._capacity, positions))
        for index, plane in enumerate(self._planes):
            self._buffers[index] = self._lengthened(index, plane, stride, held)
        self.stride = stride
        return True

    def _lengthened(self, index: int, plane: Plane, stride: int, held: Mapping[int, int]) -> Buffer:
        buffer, position = self._allocate(plane, stride), plane.size * self._item
        for row, positions in held.items():
            if positions:
                self._device.copy(
                    self.address(index, row),
                    buffer.address + row * plane.heads * stride * position,
                    positions * position,
                    lines=plane.heads,
                    source_step=self.stride * position,
                    target_step=stride * position,
                )
        return buffer

    def read(self, row: int, begin: int, end: int) -> bytes:
        blocks: list[bytes] = []
        for index, plane in enumerate(self._planes):
            size = (end - begin) * plane.size * self._item
            for address in self._head_addresses(index, row, begin) if size else ():
                head = np.empty(size, np.uint8)
                self._device.read(address, head)
                blocks.append(head.tobytes())
        return b"".join(blocks)

    def write(self, row: int, begin: int, data: bytes, positions: int) -> None:
        held, offset = len(data) // max(1, self.touched(1)), 0
        for index, plane in enumerate(self._planes):
            position = plane.size * self._item
            for address in self._head_addresses(index, row, begin) if positions else ():
                head = np.frombuffer(data, np.uint8, positions * position, offset)
                self._device.write(address, head)
                offset += held * position

    def _head_addresses(self, index: int, row: int, begin: int) -> list[int]:
        """Where position `begin` of each head of a plane's row lies."""
        plane = self._planes[index]
        position = plane.size * self._item
        first = self.address(index, row) + begin * position
        return [first + head * self.stride * position for head in range(plane.heads)]

    def close(self) -> None:
        self._buffers = []
