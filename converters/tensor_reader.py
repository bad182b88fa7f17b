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


class TensorReader:
    """Over a file that the caller keeps open. Pickles as its path: another process opens it anew."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._descriptor = file.fileno()

    def __reduce__(self) -> tuple[Callable[[pathlib.Path], TensorReader], tuple[pathlib.Path]]:
        return _reopened, (pathlib.Path(self._file.name).absolute(),)

    def blocks(self, tensor: TensorInfo, first: int, count: int) -> npt.NDArray[np.uint8]:
        """GGML blocks [n, type_size] of `count` weights from weight `first` on: whole blocks."""
        kind = _TYPES[tensor.type_name]
        start = first // kind.block_size * kind.type_size
        length = count // kind.block_size * kind.type_size
        data = self.raw(tensor, start, length)
        return np.frombuffer(data, np.uint8).reshape(-1, kind.type_size)

    def raw(self, tensor: TensorInfo, start: int, length: int) -> bytes:
        """`length` bytes of the tensor from byte `start` on."""
        data = os.pread(self._descriptor, length, tensor.offset + start)
        if len(data) != length:
            raise MalformedFile(f"tensor {tensor.name!r}: the file ends inside it")
        return data

    def floats(self, tensor: TensorInfo, first: int, count: int) -> npt.NDArray[np.float32]:
        """`count` weights as fp32, flat. Raises MalformedFile where one is not finite."""
        raw = self.blocks(tensor, first, count)
        numbers = BLOCK_TYPES[tensor.type_name].dequantize(raw).reshape(-1)
        if not np.isfinite(numbers).all():
            raise MalformedFile(f"tensor {tensor.name!r} holds a number that is not finite")
        return numbers


def _reopened(path: pathlib.Path) -> TensorReader:
    return TensorReader(path.open("rb"))
