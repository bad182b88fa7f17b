"""Reads the header of a GGUF file from a stranger: metadata and tensor table, never tensor data.

Every count, length, offset and product is bounded by a cap and by the file's size before anything
is allocated for it. Whatever the bytes, only `MalformedFile` or `Unsupported` comes out. Versions 2
and 3, little-endian. The layout is the GGUF specification's; the type sizes are ggml's.
"""

from __future__ import annotations

import itertools
import mmap
import os
import pathlib
import struct
from typing import BinaryIO, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from converters.errors import MalformedFile, Unsupported
from converters.gguf_types import ValueType

MAGIC = b"GGUF"
READABLE_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Caps, all well above the largest model known: a 262k vocabulary has about 1.3 million entries in
# tokens, scores, types and merges together, and about 10 MiB of header.
MAX_HEADER_BYTES = 256 << 20
MAX_TENSORS = 1 << 17
MAX_KEYS = 1 << 14
MAX_KEY_BYTES = 1 << 16
MAX_NAME_BYTES = 512
MAX_STRING_BYTES = 64 << 20
MAX_ARRAY_ENTRIES = 4 << 20
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 48
MAX_ALIGNMENT = 1 << 24

# Least bytes of one entry: empty key, type, one-byte value; empty name, one dimension, type, offset.
_LEAST_KEY_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

Scalar: TypeAlias = str | int | float | bool
NumberArray: TypeAlias = npt.NDArray[np.generic]
Value: TypeAlias = Scalar | list[str] | NumberArray

_STRING, _ARRAY, _BOOL = ValueType.STRING, ValueType.ARRAY, ValueType.BOOL
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
    6: "<f4", _BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_FORMATS = {
    "<u1": "<B", "<i1": "<b", "<u2": "<H", "<i2": "<h", "<u4": "<I", "<i4": "<i",
    "<f4": "<f", "<u8": "<Q", "<i8": "<q", "<f8": "<d",
}  # fmt: skip
_SCALARS = {number: struct.Struct(_FORMATS[dtype]) for number, dtype in _NUMBERS.items()}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GgmlType(msgspec.Struct, frozen=True):
    """`block_size` weights are stored together in `type_size` bytes."""

    name: str
    block_size: int
    type_size: int


# Every type that a file may hold today, whether or not a converter knows it.
GGML_TYPES = {
    0: GgmlType("F32", 1, 4), 1: GgmlType("F16", 1, 2), 2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20), 6: GgmlType("Q5_0", 32, 22), 7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34), 9: GgmlType("Q8_1", 32, 36), 10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110), 12: GgmlType("Q4_K", 256, 144), 13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210), 15: GgmlType("Q8_K", 256, 292),
    16: GgmlType("IQ2_XXS", 256, 66), 17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98), 19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18), 21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82), 23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1), 25: GgmlType("I16", 1, 2), 26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8), 28: GgmlType("F64", 1, 8), 29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2), 34: GgmlType("TQ1_0", 256, 54), 35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17), 40: GgmlType("NVFP4", 64, 36), 41: GgmlType("Q1_0", 128, 18),
    42: GgmlType("Q2_0", 64, 18),
}  # fmt: skip
_REMOVED_TYPES = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip


class TruncatedFile(MalformedFile):
    """The bytes end before the header does: more of the same file may read well."""


class TensorInfo(msgspec.Struct, frozen=True):
    """`shape` in NumPy order, slowest first; `offset` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        product = 1
        for dimension in self.shape:
            product *= dimension
        return product


class GgufFile(msgspec.Struct, frozen=True):
    """The header. Arrays of text are lists of str, arrays of numbers read-only NumPy arrays.

    `value_types` has for every key of a file that was read its type, or that of an array's entries.
    """

    version: int
    alignment: int
    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    size: int
    data_offset: int
    warnings: tuple[str, ...] = ()
    value_types: dict[str, ValueType] = {}

    @property
    def architecture(self) -> str:
        value = self.metadata.get("general.architecture", "")
        return value if isinstance(value, str) else ""


def text_value(metadata: dict[str, Value], key: str, default: str = "") -> str:
    """The text under `key`, `default` where it is absent. Raises MalformedFile on another type."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise MalformedFile(f"{key} is not text")
    return value


def integer_value(metadata: dict[str, Value], key: str, default: int) -> int:
    """The integer under `key`, as `text_value`."""
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedFile(f"{key} is not an integer")
    return value


def float_value(metadata: dict[str, Value], key: str, default: float) -> float:
    """The number under `key`, as `text_value`; integers are taken too."""
    value = metadata.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MalformedFile(f"{key} is not a number")
    return float(value)


def flag_value(metadata: dict[str, Value], key: str, *, default: bool) -> bool:
    """The truth value under `key`, as `text_value`."""
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise MalformedFile(f"{key} is not true or false")
    return value


def read_header(source: BinaryIO | str | os.PathLike[str]) -> GgufFile:
    """Reads by path or by open descriptor (whose position stays). Raises MalformedFile, Unsupported."""
    if isinstance(source, str | os.PathLike):
        with pathlib.Path(source).open("rb") as file:
            return read_header(file)
    size = os.fstat(source.fileno()).st_size
    if size == 0:
        raise TruncatedFile("the file is empty")
    with mmap.mmap(source.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        return parse_header(mapped, size)


def parse_header(data: bytes | mmap.mmap, size: int | None = None) -> GgufFile:
    """Reads the header from the first bytes of a file of `size` bytes (default: all are here)."""
    cursor = _Cursor(data)
    version = _read_version(cursor)
    tensor_count = cursor.count(MAX_TENSORS, _LEAST_TENSOR_BYTES, "tensors")
    key_count = cursor.count(MAX_KEYS, _LEAST_KEY_BYTES, "metadata keys")
    metadata, value_types, warnings = _read_metadata(cursor, key_count)
    alignment = _alignment(metadata)
    entries = [_read_tensor(cursor) for _ in range(tensor_count)]
    data_offset = -(-cursor.position // alignment) * alignment
    tensors = tuple(
        msgspec.structs.replace(entry, offset=entry.offset + data_offset) for entry in entries
    )
    size = len(data) if size is None else size
    _check_tensors(tensors, alignment, size)
    return GgufFile(version, alignment, metadata, tensors, size, data_offset, warnings, value_types)


class _Cursor:
    """A position in the header. Owns the total of array entries still allowed."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._limit = min(len(data), MAX_HEADER_BYTES)
        self._entries_left = MAX_ARRAY_ENTRIES
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes; `count` may be any number that the file claims."""
        end = self.position + count
        if end > self._limit:
            raise self._ended()
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def _ended(self) -> MalformedFile:
        if self._limit < len(self._data):
            return MalformedFile(f"the header is longer than {MAX_HEADER_BYTES} bytes")
        return TruncatedFile(f"the file ends inside the header, at byte {self._limit}")

    def u32(self) -> int:
        return _U32.unpack(self.take(4))[0]

    def u64(self) -> int:
        return _U64.unpack(self.take(8))[0]

    def count(self, most: int, least_bytes: int, what: str) -> int:
        count = self.u64()
        if count > most:
            raise MalformedFile(f"{count} {what}: at most {most} are allowed")
        if count * least_bytes > self._limit - self.position:
            raise TruncatedFile(f"{count} {what} do not fit in the bytes of the file")
        return count

    def raw_string(self, most: int, what: str) -> bytes:
        length = self.u64()
        if length > most:
            raise MalformedFile(f"{what} of {length} bytes: at most {most} are allowed")
        return self.take(length)

    def name(self, most: int, what: str) -> str:
        return _decode(self.raw_string(most, what), what)

    def array(self, key: str) -> tuple[ValueType, list[str] | NumberArray]:
        element = self.u32()
        if element == _ARRAY:
            raise Unsupported(f"{key}: arrays of arrays are not supported")
        if element != _STRING and element not in _NUMBERS:
            raise MalformedFile(f"{key}: unknown type {element} of array entries")
        width = 8 if element == _STRING else np.dtype(_NUMBERS[element]).itemsize
        count = self.count(self._entries_left, width, f"entries of {key}")
        self._entries_left -= count
        if element == _STRING:
            return _STRING, self._strings(count, key)
        return ValueType(element), self._numbers(count, element)

    def _numbers(self, count: int, element: int) -> NumberArray:
        dtype = np.dtype(_NUMBERS[element])
        values = np.frombuffer(self.take(count * dtype.itemsize), dtype=dtype)
        return values != 0 if element == _BOOL else values

    def _strings(self, count: int, key: str) -> list[str]:
        """The hot loop of large vocabularies: locals, and one bounds check per string."""
        data, limit, position = self._data, self._limit, self.position
        unpack_length = _U64.unpack_from
        pieces: list[bytes] = []
        for _ in range(count):
            start = position + 8
            if start > limit:
                raise self._ended()
            position = start + unpack_length(data, position)[0]
            if position > limit:
                raise self._ended()
            pieces.append(data[start:position])
        self.position = position
        try:
            return [str(piece, "utf-8") for piece in pieces]
        except UnicodeDecodeError as error:
            raise MalformedFile(f"{key}: an entry is not UTF-8 ({error.reason})") from error


def _decode(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedFile(f"{what} is not UTF-8 ({error.reason})") from error


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.take(4)
    if magic != MAGIC:
        raise MalformedFile(f"not a GGUF file: it starts with {magic!r}")
    version = cursor.u32()
    if version & 0xFFFF == 0:
        raise Unsupported("big-endian GGUF files are not supported")
    if version not in READABLE_VERSIONS:
        raise Unsupported(f"GGUF version {version} is not supported: 2 and 3 are")
    return version


def _read_metadata(
    cursor: _Cursor, count: int
) -> tuple[dict[str, Value], dict[str, ValueType], tuple[str, ...]]:
    metadata: dict[str, Value] = {}
    types: dict[str, ValueType] = {}
    warnings: list[str] = []
    for _ in range(count):
        key = cursor.name(MAX_KEY_BYTES, "metadata key")
        if key in metadata:
            raise MalformedFile(f"metadata key {key!r} appears twice")
        types[key], metadata[key] = _read_value(cursor, key, warnings)
    return metadata, types, tuple(warnings)


def _read_value(cursor: _Cursor, key: str, warnings: list[str]) -> tuple[ValueType, Value]:
    kind = cursor.u32()
    if kind == _ARRAY:
        return cursor.array(key)
    if kind == _STRING:
        return _STRING, _read_text(cursor, key, warnings)
    if kind not in _SCALARS:
        raise MalformedFile(f"{key}: unknown metadata type {kind}")
    scalar = _SCALARS[kind]
    value: int | float = scalar.unpack(cursor.take(scalar.size))[0]
    return ValueType(kind), bool(value) if kind == _BOOL else value


def _read_text(cursor: _Cursor, key: str, warnings: list[str]) -> str:
    """A licence in another encoding must not cost the model: damaged text is kept, with a warning."""
    raw = cursor.raw_string(MAX_STRING_BYTES, key)
    text = raw.decode(errors="replace")
    if "\ufffd" in text and text.encode() != raw:
        warnings.append(f"{key} is not UTF-8; what could not be read was replaced")
    return text


def _alignment(metadata: dict[str, Value]) -> int:
    value = integer_value(metadata, "general.alignment", DEFAULT_ALIGNMENT)
    if not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise MalformedFile(f"general.alignment is {value}: not a power of two in range")
    return value


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    """One row of the table; the offset is still counted from the start of the data."""
    name = cursor.name(MAX_NAME_BYTES, "tensor name")
    rank = cursor.u32()
    if not 0 < rank <= MAX_DIMENSIONS:
        raise MalformedFile(f"tensor {name!r} has {rank} dimensions: 1 to {MAX_DIMENSIONS} allowed")
    shape = tuple(reversed([cursor.u64() for _ in range(rank)]))
    kind = _ggml_type(name, cursor.u32())
    elements = 1
    for dimension in shape:
        elements *= dimension
        if not 0 < elements <= MAX_ELEMENTS:
            raise MalformedFile(f"tensor {name!r} has an impossible shape {list(shape)}")
    if shape[-1] % kind.block_size:
        raise MalformedFile(
            f"tensor {name!r}: rows of {shape[-1]} do not divide into {kind.name} blocks"
        )
    nbytes = elements // kind.block_size * kind.type_size
    return TensorInfo(name, shape, kind.name, cursor.u64(), nbytes)


def _ggml_type(name: str, number: int) -> GgmlType:
    kind = GGML_TYPES.get(number)
    if kind is None:
        what = _REMOVED_TYPES.get(number)
        described = f"{what}, which GGUF gave up" if what else f"number {number}, unknown here"
        raise Unsupported(f"tensor {name!r} has the type {described}")
    return kind


def _check_tensors(tensors: tuple[TensorInfo, ...], alignment: int, size: int) -> None:
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise MalformedFile(f"tensor {tensor.name!r} appears twice")
        names.add(tensor.name)
        if tensor.offset % alignment:
            raise MalformedFile(f"tensor {tensor.name!r} is not aligned to {alignment} bytes")
        if tensor.offset + tensor.nbytes > size:
            raise TruncatedFile(f"tensor {tensor.name!r} ends beyond the file's {size} bytes")
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise MalformedFile(f"tensors {before.name!r} and {after.name!r} overlap")
