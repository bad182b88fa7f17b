"""Reads tensor data from an open GGUF, a slice at a time, by position.

The header has said where each tensor lies; the file may have changed since, so lengths are checked
again. Never maps the file: a mapped page that goes away kills the process instead of raising.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from converters.blocks import BLOCK_TYPES
from converters.errors import MalformedFile
from converters.gguf import GGML_TYPES, TensorInfo

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}


class BlockBuffer:
    """Room for blocks, used again and again: it stays in the cache, and the kernel gives it once."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def room(self, length: int) -> npt.NDArray[np.uint8]:
        if len(self._bytes) < length:
            self._bytes = np.empty(length, np.uint8)
        return self._bytes[:length]


class TensorReader:
    """Over a file that the caller keeps open. Pickles as its path: another process opens it anew."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._descriptor = file.fileno()

    def __reduce__(self) -> tuple[Callable[[pathlib.Path], TensorReader], tuple[pathlib.Path]]:
        return _reopened, (pathlib.Path(self._file.name).absolute(),)

    def blocks(
        self, tensor: TensorInfo, first: int, count: int, buffer: BlockBuffer | None = None
    ) -> npt.NDArray[np.uint8]:
        """GGML blocks [n, type_size] of `count` weights from weight `first` on: whole blocks.

        Those in a buffer are valid until more is read into it.
        """
        kind = _TYPES[tensor.type_name]
        start = first // kind.block_size * kind.type_size
        length = count // kind.block_size * kind.type_size
        data = (buffer or BlockBuffer()).room(length)
        if os.preadv(self._descriptor, [data.data], tensor.offset + start) != length:
            raise _ends_inside(tensor)
        return data.reshape(-1, kind.type_size)

    def raw(self, tensor: TensorInfo, start: int, length: int) -> bytes:
        """`length` bytes of the tensor from byte `start` on."""
        data = os.pread(self._descriptor, length, tensor.offset + start)
        if len(data) != length:
            raise _ends_inside(tensor)
        return data

    def floats(
        self, tensor: TensorInfo, first: int, count: int, buffer: BlockBuffer | None = None
    ) -> npt.NDArray[np.float32]:
        """`count` weights as fp32, flat. Raises MalformedFile where one is not finite."""
        raw = self.blocks(tensor, first, count, buffer)
        numbers = BLOCK_TYPES[tensor.type_name].dequantize(raw).reshape(-1)
        if not np.isfinite(numbers).all():
            raise MalformedFile(f"tensor {tensor.name!r} holds a number that is not finite")
        return numbers


def _ends_inside(tensor: TensorInfo) -> MalformedFile:
    return MalformedFile(f"tensor {tensor.name!r}: the file ends inside it")


def _reopened(path: pathlib.Path) -> TensorReader:
    return TensorReader(path.open("rb"))
