"""A file of known size, written at given places by one process or several."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt


class OutputFile:
    """Pickles as its path: another process opens it anew."""

    def __init__(self, path: pathlib.Path, flags: int = os.O_WRONLY) -> None:
        self._path = path
        self._descriptor = os.open(path, flags, 0o644)

    def __reduce__(self) -> tuple[type[OutputFile], tuple[pathlib.Path]]:
        return OutputFile, (self._path,)

    def resize(self, nbytes: int) -> None:
        os.ftruncate(self._descriptor, nbytes)

    def put(self, values: npt.NDArray[np.generic] | bytes, offset: int) -> int:
        """All bytes, from `offset` on; how many they are."""
        array = np.frombuffer(values, np.uint8) if isinstance(values, bytes) else values
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        count = len(data)
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written
        return count

    def close(self) -> None:
        os.close(self._descriptor)


@contextmanager
def new_file(path: pathlib.Path) -> Iterator[OutputFile]:
    """Raises FileExistsError."""
    made = OutputFile(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        yield made
    finally:
        made.close()
