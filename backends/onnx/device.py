"""A device whose memory the host cannot touch: buffers, copies within it, lines read back.

`CudaDevice` is a GPU; `HostDevice` has the same duties in the machine's own memory, so that all that
is built on them runs, and is tested, without a GPU. The engine on the CPU uses neither.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.engine.machine_memory import available_memory_bytes
from backends.onnx.cuda_driver import CudaDriver, DriverError
from backends.types import EngineError


class Buffer:
    """`size` bytes of zeros at `address`, given back when nothing holds the object any more."""

    def __init__(self, word: str, size: int) -> None:
        self._value: Any = ort.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, word, 0)
        self.address = int(self._value.data_ptr())
        self.size = size


class Device(Protocol):
    """`word` is the runtime's name for it in bindings, `name` ours. Raises EngineError("device")."""

    @property
    def name(self) -> str: ...

    @property
    def word(self) -> str: ...

    def allocate(self, size: int) -> Buffer: ...

    def copy(
        self,
        source: int,
        target: int,
        width: int,
        *,
        lines: int,
        source_step: int,
        target_step: int,
    ) -> None:
        """`lines` pieces of `width` bytes, each a step behind the last."""
        ...

    def read(self, address: int, into: NDArray[Any]) -> None: ...

    def write(self, address: int, array: NDArray[Any]) -> None:
        """When it returns the bytes are there, for every stream."""
        ...

    def zero(self, address: int, size: int) -> None: ...

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        ...


class HostDevice:
    name = "host"
    word = "cpu"

    def allocate(self, size: int) -> Buffer:
        buffer = Buffer(self.word, size)
        ctypes.memset(buffer.address, 0, size)
        return buffer

    def copy(
        self,
        source: int,
        target: int,
        width: int,
        *,
        lines: int,
        source_step: int,
        target_step: int,
    ) -> None:
        for line in range(lines):
            ctypes.memmove(target + line * target_step, source + line * source_step, width)

    def read(self, address: int, into: NDArray[Any]) -> None:
        ctypes.memmove(into.ctypes.data, address, into.nbytes)

    def write(self, address: int, array: NDArray[Any]) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def zero(self, address: int, size: int) -> None:
        ctypes.memset(address, 0, size)

    def memory(self) -> tuple[int, int]:
        free = available_memory_bytes()
        return free, free


class CudaDevice:
    name = "cuda"
    word = "cuda"

    def __init__(self, driver: CudaDriver | None = None) -> None:
        try:
            self._driver = driver or CudaDriver()
        except DriverError as error:
            raise EngineError("device", str(error)) from error

    def allocate(self, size: int) -> Buffer:
        """Fresh memory may hold NaN, which no mask takes out of a sum."""
        try:
            buffer = Buffer(self.word, size)
            self._driver.zero(buffer.address, size)
        except Exception as error:
            free = self._free()
            raise EngineError(
                "device", f"the GPU has no room for {size} bytes, {free} are free: {error}"
            ) from error
        return buffer

    def _free(self) -> int:
        try:
            return self._driver.memory()[0]
        except DriverError:
            return 0

    def copy(
        self,
        source: int,
        target: int,
        width: int,
        *,
        lines: int,
        source_step: int,
        target_step: int,
    ) -> None:
        try:
            self._driver.copy(
                source, target, width, lines=lines, source_step=source_step, target_step=target_step
            )
        except DriverError as error:
            raise EngineError("device", f"a copy on the GPU failed: {error}") from error

    def read(self, address: int, into: NDArray[Any]) -> None:
        try:
            self._driver.read(address, into.ctypes.data, into.nbytes)
        except DriverError as error:
            raise EngineError("device", f"reading from the GPU failed: {error}") from error

    def write(self, address: int, array: NDArray[Any]) -> None:
        try:
            self._driver.write(address, array.ctypes.data, array.nbytes)
        except DriverError as error:
            raise EngineError("device", f"writing to the GPU failed: {error}") from error

    def zero(self, address: int, size: int) -> None:
        try:
            self._driver.zero(address, size)
        except DriverError as error:
            raise EngineError("device", f"clearing the GPU's memory failed: {error}") from error

    def memory(self) -> tuple[int, int]:
        try:
            return self._driver.memory()
        except DriverError as error:
            raise EngineError("device", str(error)) from error


def open_device(name: str) -> Device | None:
    """None for the CPU, which needs none. Raises EngineError."""
    if name == "cpu":
        return None
    if name == "cuda":
        return CudaDevice()
    raise EngineError("unsupported", f"this build runs ONNX models on cpu and cuda, not {name}")
