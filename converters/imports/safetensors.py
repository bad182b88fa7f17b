"""Reads the header of a safetensors file from a stranger: names, types, shapes, places; no weights.

Layout (the safetensors specification): u64 length of the header, the header as a JSON object, then
the data. Every count, length and product is bounded by a cap and by the file's size; two tensors may
not share bytes, nor may two share a name. Whatever the bytes, only MalformedFile or Unsupported
comes out.
"""

from __future__ import annotations

import itertools
import os
import struct

import msgspec

from converters.errors import MalformedFile, Unsupported
from converters.strict_json import parse_json

# A tensor takes about 120 bytes of header: the cap is far above the largest model known.
MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 1 << 17
MAX_NAME_CHARACTERS = 512
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 48

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"
# Bits of one number; types of a newer specification are refused by name.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class StoredTensor(msgspec.Struct, frozen=True):
    """`offset` counts from the start of the file that `descriptor` is open on; `shape` as NumPy's."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    descriptor: int

    @property
    def elements(self) -> int:
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_tensors(descriptor: int, file_name: str) -> list[StoredTensor]:
    """All tensors of one file, in order of their bytes. Raises MalformedFile, Unsupported."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, _LENGTH.size, 0)
    if len(head) < _LENGTH.size:
        raise MalformedFile(f"{file_name} is too short for a safetensors file")
    length = _LENGTH.unpack(head)[0]
    start = _LENGTH.size + length
    if length > MAX_HEADER_BYTES or start > size:
        raise MalformedFile(f"{file_name}: a header of {length} bytes in a file of {size}")
    entries = _entries(os.pread(descriptor, length, _LENGTH.size), file_name)
    tensors = [
        _tensor(name, entry, start, size, descriptor, file_name) for name, entry in entries.items()
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    for before, after in itertools.pairwise(tensors):
        if before.offset + before.nbytes > after.offset:
            raise MalformedFile(f"{file_name}: {before.name!r} and {after.name!r} overlap")
    return tensors


def _entries(data: bytes, file_name: str) -> dict[str, _Entry]:
    try:
        header = parse_json(data.decode(), f"{file_name}: its header")
        if isinstance(header, dict):
            header.pop(_METADATA, None)
        entries = msgspec.convert(header, dict[str, _Entry])
    except (UnicodeDecodeError, msgspec.ValidationError) as error:
        raise MalformedFile(f"{file_name}: its header is not readable ({error})") from error
    if len(entries) > MAX_TENSORS:
        raise MalformedFile(f"{file_name}: {len(entries)} tensors, over {MAX_TENSORS}")
    return entries


def _tensor(
    name: str, entry: _Entry, start: int, size: int, descriptor: int, file_name: str
) -> StoredTensor:
    where = f"{file_name}: tensor {name[:MAX_NAME_CHARACTERS]!r}"
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise MalformedFile(f"{file_name}: a tensor's name has {len(name)} characters")
    bits = _BITS.get(entry.dtype)
    if bits is None:
        raise Unsupported(f"{where} has the type {entry.dtype[:40]!r}, which is not known here")
    if len(entry.shape) > MAX_DIMENSIONS:
        raise MalformedFile(f"{where} has {len(entry.shape)} dimensions")
    elements = 1
    for dimension in entry.shape:
        elements *= dimension
        if dimension < 0 or elements > MAX_ELEMENTS:
            raise MalformedFile(f"{where} has an impossible shape {entry.shape}")
    first, end = entry.data_offsets
    if not 0 <= first <= end <= size - start:
        raise MalformedFile(f"{where} lies outside of the file")
    if (end - first) * 8 != elements * bits:
        raise MalformedFile(f"{where}: {end - first} bytes for {elements} of {entry.dtype}")
    return StoredTensor(
        name, entry.dtype, tuple(entry.shape), start + first, end - first, descriptor
    )
