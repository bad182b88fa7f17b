"""One quantising, from an open GGUF to a smaller one in its place: read, plan, write, verify, publish.

Slices are quantised by as many processes as there are processors, each straight to its place:
memory is a constant, whatever the model. Raises ConversionError for what the file or the filesystem
is to blame for; nothing appears under the final name before it is on the disk.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from converters.artifact import MADE_GGUF, MADE_NOTES
from converters.errors import Unsupported
from converters.gguf import TensorInfo, read_header
from converters.made_gguf import verify_gguf
from converters.output_file import OutputFile, new_file
from converters.parallel import RunInOrder, one_by_one
from converters.progress import Progress
from converters.quantise.encoder import ENCODERS, Bytes
from converters.quantise.plan import QuantisingPlan, plan_quantising
from converters.staging import check_space, staged, sync_and_publish
from converters.tensor_reader import TensorReader

# Weights per slice, and per pass over arrays that should stay in the cache.
SLICE_WEIGHTS = 1 << 20
PASS_WEIGHTS = 1 << 16


def quantise(
    file: BinaryIO,
    final: pathlib.Path,
    file_type: str,
    progress: Progress,
    run: RunInOrder = one_by_one,
) -> int:
    """Makes the folder `final` with the file and its notes in it; gives the file's bytes."""
    progress.start("plan")
    planned = plan_quantising(read_header(file), file_type)
    check_space(final.parent, planned.file.total_bytes)
    with staged(final) as staging:
        notes = [planned.note] if planned.note else []
        (staging / MADE_NOTES).write_text(json.dumps(notes))
        progress.start("write", planned.source_bytes)
        path = staging / MADE_GGUF
        _write(planned, TensorReader(file), path, run, progress.advance)
        progress.start("verify")
        verify_gguf(path, planned.file)
        sync_and_publish(staging, final, planned.file.total_bytes, progress)
    return planned.file.total_bytes


def _write(
    planned: QuantisingPlan,
    reader: TensorReader,
    path: pathlib.Path,
    run: RunInOrder,
    advance: Callable[[int], None],
) -> None:
    """`advance` is told bytes of the source."""
    with new_file(path) as target:
        target.resize(planned.file.total_bytes)
        target.put(planned.file.header, 0)
        run(SliceWriter(reader, target), _slices(planned), advance)


class Slice(NamedTuple):
    """So many weights from `first` on, of a source and of the tensor that is made of it."""

    source: TensorInfo
    made: TensorInfo
    first: int
    weights: int


def _slices(planned: QuantisingPlan) -> Iterator[Slice]:
    for source, made in zip(planned.sources, planned.file.tensors, strict=True):
        for first in range(0, source.elements, SLICE_WEIGHTS):
            yield Slice(source, made, first, min(SLICE_WEIGHTS, source.elements - first))


class SliceWriter:
    """Puts slices in their places, in any process; each gives its bytes in the source."""

    def __init__(self, reader: TensorReader, target: OutputFile) -> None:
        self._reader = reader
        self._target = target

    def __call__(self, part: Slice) -> int:
        source, made = part.source, part.made
        packed = _quantised(self._reader, source, made.type_name, part.first, part.weights)
        self._target.put(packed, made.offset + made.nbytes * part.first // made.elements)
        return source.nbytes * part.weights // source.elements


def _quantised(
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
