"""A file of known size, written at given places by one process or several."""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

_SYNC_SECONDS = 0.5


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
    def syncing(self) -> Iterator[None]:
        """What is written meanwhile goes to the disk at once, so that the last sync is short.

        Raises the OSError of a sync here: the system tells it only once.
        """
        ended, failures = threading.Event(), list[OSError]()
        thread = threading.Thread(target=self._keep_syncing, args=(ended, failures), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if failures:
            raise failures[0]

    def _keep_syncing(self, ended: threading.Event, failures: list[OSError]) -> None:
        try:
            while not ended.wait(_SYNC_SECONDS):
                os.fsync(self._descriptor)
        except OSError as error:
            failures.append(error)


@contextmanager
def new_file(path: pathlib.Path) -> Iterator[OutputFile]:
    """Raises FileExistsError, and what the disk says of the bytes."""
    made = OutputFile(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with made.syncing():
            yield made
    finally:
        made.close()
