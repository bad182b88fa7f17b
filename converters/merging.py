"""A model split over several GGUF files as one file: `split.*` checked and dropped, bytes copied.

Source: llama.cpp's `gguf-split`: `name-00001-of-0000N.gguf`; the first part has the metadata, each one
its share of the tensors; `split.no` counts from 0. Raises MalformedFile for parts that are not one
model, Unsupported for a model that could not be converted afterwards, NoSpace.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import msgspec

from converters.errors import MalformedFile
from converters.gguf import GgufFile, TensorInfo, integer_value, parse_header, read_header
from converters.gguf_writer import GgufPlan, NewTensor, plan_file, typed_metadata
from converters.made_gguf import Made, make_gguf
from converters.plan import require_convertible
from converters.progress import Progress
from converters.tensor_reader import TensorReader

# Far beyond any published model.
MAX_PARTS = 999
SLICE_BYTES = 4 << 20
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


class Part(msgspec.Struct, frozen=True):
    header: GgufFile
    reader: TensorReader


def merge(files: Sequence[BinaryIO], final: pathlib.Path, progress: Progress) -> Made:
    """Makes the folder `final` with `model.gguf` in it, from the parts in any order."""
    progress.start("plan")
    parts = in_order([Part(read_header(file), TensorReader(file)) for file in files])
    planned = plan_merge([part.header for part in parts])
    require_convertible(parse_header(planned.header, planned.total_bytes))
    return make_gguf(final, planned, _copied(parts, progress.advance), progress)


def in_order(parts: Sequence[Part]) -> list[Part]:
    """By `split.no`, having seen that each is there once."""
    ordered = sorted(parts, key=lambda part: _number(part.header, "split.no"))
    numbers = [_number(part.header, "split.no") for part in ordered]
    counts = {_number(part.header, "split.count") for part in ordered}
    if len(parts) > MAX_PARTS or counts != {len(parts)} or numbers != list(range(len(parts))):
        stated = ", ".join(f"{number + 1} of {min(counts)}" for number in numbers[:8])
        raise MalformedFile(f"{len(parts)} parts are not one model: they are {stated}")
    return ordered


def plan_merge(headers: Sequence[GgufFile]) -> GgufPlan:
    """The whole file's header and places. The parts must be in order."""
    first = headers[0]
    tensors = [tensor for header in headers for tensor in header.tensors]
    stated = _number(first, "split.tensors.count")
    if stated != len(tensors):
        raise MalformedFile(f"the parts hold {len(tensors)} tensors, not {stated}")
    metadata = typed_metadata(first)
    kept = {key: value for key, value in metadata.items() if key not in _SPLIT_KEYS}
    try:
        return plan_file(kept, [NewTensor(t.name, t.shape, t.type_name) for t in tensors])
    except ValueError as error:
        raise MalformedFile(str(error)) from error


def _number(header: GgufFile, key: str) -> int:
    if key not in header.metadata:
        raise MalformedFile(f"a part of a split model lacks the metadata key {key}")
    return integer_value(header.metadata, key, 0)


def _copied(
    parts: Sequence[Part], advance: Callable[[int], None]
) -> Callable[[TensorInfo], Iterator[bytes]]:
    sources = {
        tensor.name: (part.reader, tensor) for part in parts for tensor in part.header.tensors
    }

    def slices(tensor: TensorInfo) -> Iterator[bytes]:
        reader, source = sources[tensor.name]
        for first in range(0, source.nbytes, SLICE_BYTES):
            data = reader.raw(source, first, min(SLICE_BYTES, source.nbytes - first))
            yield data
            advance(len(data))

    return slices
