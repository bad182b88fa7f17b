"""Writes a GGUF file of version 3: planned whole from metadata and shapes, then streamed in slices.

`plan_file` is pure and decides every byte but the weights; `write_file` adds those, in the table's
order, and hashes what it writes. The layout is the GGUF specification's; whatever is written here
`converters.gguf` reads back, key for key and with the same value types.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from converters.gguf import (
    DEFAULT_ALIGNMENT,
    GGML_TYPES,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    GgufFile,
    TensorInfo,
    Value,
)
from converters.gguf_types import ValueType

VERSION = 3

_TYPE_NUMBERS = {kind.name: number for number, kind in GGML_TYPES.items()}
_DTYPES = {
    ValueType.UINT8: "<u1", ValueType.INT8: "<i1", ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2", ValueType.UINT32: "<u4", ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4", ValueType.BOOL: "<u1", ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8", ValueType.FLOAT64: "<f8",
}  # fmt: skip


class TypedValue(NamedTuple):
    """`value_type` is the value's, or each entry's where the value is a list or an array."""

    value_type: ValueType
    value: Value


class NewTensor(msgspec.Struct, frozen=True):
    """A tensor to be written: `shape` in NumPy order, slowest first; a GGML type by its name."""

    name: str
    shape: tuple[int, ...]
    type_name: str


class GgufPlan(msgspec.Struct, frozen=True):
    """`header` ends where the first tensor begins; offsets count from the start of the file."""

    header: bytes
    tensors: tuple[TensorInfo, ...]
    total_bytes: int


Slices = Iterable[npt.NDArray[np.uint8] | bytes]


def typed_metadata(file: GgufFile) -> dict[str, TypedValue]:
    """All keys of a file that was read, ready to be written again."""
    return {key: TypedValue(file.value_types[key], value) for key, value in file.metadata.items()}


def plan_file(metadata: Mapping[str, TypedValue], tensors: Sequence[NewTensor]) -> GgufPlan:
    """The header and where every tensor goes, `general.alignment` (or 32) apart.

    Raises ValueError for what GGUF cannot say: names, ranks, types, values out of their type's
    range, rows that do not divide into blocks.
    """
    alignment = _alignment(metadata)
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise ValueError("two tensors have the same name")
    relative, end = _placed(tensors, alignment)
    head = struct.pack("<4sIQQ", MAGIC, VERSION, len(tensors), len(metadata))
    pairs = [_text(key) + _value(key, typed) for key, typed in metadata.items()]
    rows = [_table_row(tensor) for tensor in relative]
    header = head + b"".join(pairs) + b"".join(rows)
    header += bytes(-len(header) % alignment)
    placed = tuple(
        msgspec.structs.replace(tensor, offset=tensor.offset + len(header)) for tensor in relative
    )
    return GgufPlan(header, placed, len(header) + end)


def write_file(file: BinaryIO, plan: GgufPlan, slices: Callable[[TensorInfo], Slices]) -> str:
    """Writes from the file's position on; `slices(tensor)` gives a tensor's bytes in order.

    Returns the sha256 of all that was written, in hexadecimal. Raises ValueError where the slices
    are more or fewer bytes than planned. Syncing and renaming are the caller's.
    """
    written = _Hashed(file)
    written.write(plan.header)
    for tensor in plan.tensors:
        written.pad_to(tensor.offset)
        for piece in slices(tensor):
            written.write(piece)
        if written.count != tensor.offset + tensor.nbytes:
            given = written.count - tensor.offset
            raise ValueError(f"tensor {tensor.name!r}: {given} bytes, {tensor.nbytes} planned")
    written.pad_to(plan.total_bytes)
    return written.digest.hexdigest()


class _Hashed:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.count = 0

    def write(self, data: npt.NDArray[np.uint8] | bytes) -> None:
        view = np.frombuffer(data, np.uint8).data
        self._file.write(view)
        self.digest.update(view)
        self.count += view.nbytes

    def pad_to(self, position: int) -> None:
        self.write(bytes(position - self.count))


def _alignment(metadata: Mapping[str, TypedValue]) -> int:
    given = metadata.get("general.alignment")
    if given is None:
        return DEFAULT_ALIGNMENT
    value = given.value
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise ValueError(f"general.alignment is {value}: not a power of two")
    return value


def _placed(tensors: Sequence[NewTensor], alignment: int) -> tuple[list[TensorInfo], int]:
    """Offsets from the start of the data, and where the data ends."""
    placed, position = [], 0
    for tensor in tensors:
        nbytes = _nbytes(tensor)
        info = TensorInfo(tensor.name, tensor.shape, tensor.type_name, position, nbytes)
        placed.append(info)
        position += -(-nbytes // alignment) * alignment
    return placed, position


def _nbytes(tensor: NewTensor) -> int:
    if tensor.type_name not in _TYPE_NUMBERS:
        raise ValueError(f"tensor {tensor.name!r}: {tensor.type_name} is no type of GGUF")
    if not 0 < len(tensor.shape) <= MAX_DIMENSIONS or min(tensor.shape) <= 0:
        raise ValueError(f"tensor {tensor.name!r}: a shape {list(tensor.shape)} is not possible")
    if len(tensor.name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"tensor {tensor.name!r}: a name has at most {MAX_NAME_BYTES} bytes")
    kind = GGML_TYPES[_TYPE_NUMBERS[tensor.type_name]]
    if tensor.shape[-1] % kind.block_size:
        raise ValueError(f"tensor {tensor.name!r}: rows do not divide into {kind.name} blocks")
    return math.prod(tensor.shape) // kind.block_size * kind.type_size


def _table_row(tensor: TensorInfo) -> bytes:
    rank, number = len(tensor.shape), _TYPE_NUMBERS[tensor.type_name]
    dimensions = struct.pack(f"<I{rank}Q", rank, *reversed(tensor.shape))
    return _text(tensor.name) + dimensions + struct.pack("<IQ", number, tensor.offset)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, typed: TypedValue) -> bytes:
    value_type, value = typed
    try:
        if isinstance(value, list | np.ndarray):
            head = struct.pack("<IIQ", ValueType.ARRAY, value_type, len(value))
            return head + _entries(value_type, value)
        payload = _text_of(value) if value_type is ValueType.STRING else _numbers(value_type, value)
    except (KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"{key}: {value!r:.60} is not of type {value_type.name}") from error
    return struct.pack("<I", value_type) + payload


def _entries(value_type: ValueType, values: list[str] | npt.NDArray[np.generic]) -> bytes:
    if value_type is ValueType.STRING:
        return b"".join(_text_of(value) for value in values)
    return _numbers(value_type, values) if len(values) else b""


def _text_of(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError
    return _text(value)


def _numbers(value_type: ValueType, values: npt.ArrayLike) -> bytes:
    """Raises TypeError, or OverflowError where an integer type would change a number."""
    given = np.asarray(values)
    if given.dtype.kind not in "biuf":
        raise TypeError
    written = given.astype(_DTYPES[value_type])
    if written.dtype.kind != "f" and (written != given).any():
        raise OverflowError
    return written.tobytes()
