"""One quantising, from an open GGUF to a smaller one in its place: read, plan, write, verify, publish.

Slices of rows are quantised by as many threads as there are processors, in order, a few ahead of
the writer: memory is a constant, whatever the model. Raises ConversionError for what the file or the
filesystem is to blame for; nothing appears under the final name before it is on the disk.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from converters.artifact import MADE_GGUF, MADE_NOTES
from converters.errors import Unsupported
from converters.gguf import TensorInfo, read_header
from converters.gguf_writer import write_file
from converters.made_gguf import verify_gguf
from converters.progress import Progress
from converters.quantise.encoder import ENCODERS, Bytes
from converters.quantise.plan import QuantisingPlan, plan_quantising
from converters.staging import check_space, publish, staged, sync_files
from converters.tensor_reader import TensorReader

# Weights per task of a thread, and per pass over arrays that should stay in the cache.
TASK_WEIGHTS = 1 << 20
PASS_WEIGHTS = 1 << 16
_TASKS_AHEAD = 2


def quantise(file: BinaryIO, final: pathlib.Path, file_type: str, progress: Progress) -> int:
    """Makes the folder `final` with the file and its notes in it; gives the file's bytes."""
    progress.start("plan")
    planned = plan_quantising(read_header(file), file_type)
    check_space(final.parent, planned.file.total_bytes)
    with staged(final) as staging:
        notes = [planned.note] if planned.note else []
        (staging / MADE_NOTES).write_text(json.dumps(notes))
        _write(planned, TensorReader(file), staging / MADE_GGUF, progress)
        progress.start("verify")
        verify_gguf(staging / MADE_GGUF, planned.file)
        progress.start("sync", planned.file.total_bytes)
        sync_files(staging)
        publish(staging, final)
        progress.finish()
    return planned.file.total_bytes


def _write(
    planned: QuantisingPlan, reader: TensorReader, path: pathlib.Path, progress: Progress
) -> None:
    """Progress counts the bytes of the source."""
    progress.start("write", planned.source_bytes)
    sources = {tensor.name: tensor for tensor in planned.sources}
    threads = _processors()
    pool = ThreadPoolExecutor(threads)
    try:
        tasks = _Tasks(pool, threads * _TASKS_AHEAD, reader, progress.advance)
        with path.open("xb") as file:
            write_file(
                file, planned.file, lambda new: tasks.slices(sources[new.name], new.type_name)
            )
    finally:
        pool.shutdown(cancel_futures=True)


class _Tasks:
    """Slices of tensors on their way through the threads; at most `ahead` of one tensor at a time."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        ahead: int,
        reader: TensorReader,
        advance: Callable[[int], None],
    ) -> None:
        self._pool = pool
        self._ahead = ahead
        self._reader = reader
        self._advance = advance

    def slices(self, source: TensorInfo, type_name: str) -> Iterator[Bytes]:
        """The bytes of the tensor in its new type, in order."""
        running: deque[tuple[int, Future[Bytes]]] = deque()
        for first in range(0, source.elements, TASK_WEIGHTS):
            count = min(TASK_WEIGHTS, source.elements - first)
            nbytes = source.nbytes * count // source.elements
            task = self._pool.submit(_slice, self._reader, source, type_name, first, count)
            running.append((nbytes, task))
            if len(running) >= self._ahead:
                yield self._next(running)
        while running:
            yield self._next(running)

    def _next(self, running: deque[tuple[int, Future[Bytes]]]) -> Bytes:
        nbytes, task = running.popleft()
        result = task.result()
        self._advance(nbytes)
        return result


def _slice(
    reader: TensorReader, source: TensorInfo, type_name: str, first: int, count: int
) -> Bytes:
    """Raises MalformedFile for numbers that are not finite, Unsupported for those too large."""
    if source.type_name == type_name:
        return reader.blocks(source, first, count).reshape(-1)
    encoder = ENCODERS[type_name]
    packed = np.empty((count // encoder.block_size, encoder.type_size), np.uint8)
    for start in range(0, count, PASS_WEIGHTS):
        size = min(PASS_WEIGHTS, count - start)
        weights = reader.floats(source, first + start, size)
        largest = float(max(weights.max(), -weights.min()))
        if largest > encoder.largest:
            raise Unsupported(
                f"tensor {source.name!r} holds {largest:g}, more than {type_name} can write"
            )
        at = start // encoder.block_size
        blocks = encoder.encode(weights.reshape(-1, encoder.block_size))
        packed[at : at + len(blocks)] = blocks
    return packed.reshape(-1)


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
