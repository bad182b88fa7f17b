"""Typed questions to a GGUF header, as the architecture files ask them.

Keys are given without their `<architecture>.` prefix. Every answer is of the asked type and in
range, or MalformedFile names the key or the tensor. Reads no tensor data.
"""

from __future__ import annotations

import math

import numpy as np

from converters.architectures.parts import Linear
from converters.errors import MalformedFile
from converters.gguf import (
    GgufFile,
    TensorInfo,
    flag_value,
    float_value,
    integer_value,
    text_value,
)

MAX_COUNT = 1 << 31


class Header:
    """One file's metadata and tensor table, for one architecture's `describe`."""

    def __init__(self, file: GgufFile) -> None:
        self.architecture = file.architecture
        self._metadata = file.metadata
        self._tensors = {tensor.name: tensor for tensor in file.tensors}

    @property
    def name(self) -> str:
        return text_value(self._metadata, "general.name")

    @property
    def token_count(self) -> int:
        """Texts in the tokenizer's list; 0 where there is none."""
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, list) else 0

    @property
    def width(self) -> int:
        """Numbers in a hidden state: the columns of `token_embd`."""
        return self.tensor("token_embd.weight").shape[-1]

    @property
    def block_count(self) -> int:
        """As the file says, those that predict ahead included; each block has a tensor of its own."""
        count = self.count("block_count")
        if count > len(self._tensors):
            raise MalformedFile(
                f"{self.architecture}.block_count is {count} in a file of {len(self._tensors)} tensors"
            )
        return count

    def epsilon(self, *, is_centered: bool) -> float:
        """Of RMSNorm, or of LayerNorm."""
        return self.positive(f"attention.layer_norm_{'' if is_centered else 'rms_'}epsilon")

    def has(self, key: str) -> bool:
        return self._key(key) in self._metadata

    def count(self, key: str, default: int | None = None) -> int:
        """A number from 0 to 2^31; without a default the key must be there."""
        full = self._known(key, default)
        return self._in_range(key, integer_value(self._metadata, full, default or 0))

    def counts(self, key: str, blocks: int, default: int | None = None) -> tuple[int, ...]:
        """One count per block: an array of at least `blocks`, or one number for all."""
        value = self._metadata.get(self._key(key))
        if not isinstance(value, np.ndarray):
            return (self.count(key, default),) * blocks
        if len(value) < blocks or value.dtype.kind not in "iu":
            raise MalformedFile(f"{self._key(key)}: {len(value)} entries for {blocks} blocks")
        return tuple(self._in_range(key, int(entry)) for entry in value[:blocks])

    def number(self, key: str, default: float | None = None) -> float:
        value = float_value(self._metadata, self._known(key, default), default or 0.0)
        if not math.isfinite(value):
            raise MalformedFile(f"{self._key(key)} is not a finite number")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise MalformedFile(f"{self._key(key)} is {value}: it must be above zero")
        return value

    def text(self, key: str, default: str) -> str:
        return text_value(self._metadata, self._key(key), default)

    def flag(self, key: str, default: bool) -> bool:
        return flag_value(self._metadata, self._key(key), default=default)

    def flags(self, key: str) -> tuple[bool, ...] | None:
        """An array of truth values; None where the key is absent or a single value."""
        value = self._metadata.get(self._key(key))
        if not isinstance(value, np.ndarray):
            return None
        if value.dtype.kind not in "biu":
            raise MalformedFile(f"{self._key(key)} holds {value.dtype}, not truth values")
        return tuple(bool(entry) for entry in value)

    def integers(self, key: str) -> tuple[int, ...]:
        """An array of counts of any length; empty where the key is absent or a single value."""
        value = self._metadata.get(self._key(key))
        return self.counts(key, len(value)) if isinstance(value, np.ndarray) else ()

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """An array of numbers, infinite ones among them; None where the key is absent."""
        value = self._metadata.get(self._key(key))
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise MalformedFile(f"{self._key(key)} does not hold numbers")
        return tuple(float(entry) for entry in value)

    def number_of_block(self, key: str, index: int) -> float:
        """A key without the architecture's prefix: one number for all blocks, or one for each."""
        value = self._metadata.get(key)
        if isinstance(value, np.ndarray):
            if not index < len(value) or value.dtype.kind not in "fiu":
                raise MalformedFile(f"{key}: {len(value)} entries of {value.dtype}")
            value = float(value[index])
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise MalformedFile(f"{key} is missing, or not a number for each block")
        return float(value)

    def tensor(self, name: str) -> TensorInfo:
        try:
            return self._tensors[name]
        except KeyError:
            raise MalformedFile(f"tensor {name!r} is missing") from None

    def vector(self, name: str, *lengths: int) -> str:
        """`name`, having seen that it is there and as long as one of `lengths`."""
        shape = self.tensor(name).shape
        if len(shape) != 1 or shape[0] not in lengths:
            raise MalformedFile(f"tensor {name!r} has shape {list(shape)}, not [{lengths[0]}]")
        return name

    def array(self, name: str, *shape: int) -> tuple[int, ...]:
        """Its shape, having seen that it is `shape`, where 0 leaves a side open."""
        found = self.tensor(name).shape
        if len(found) != len(shape) or any(
            wanted not in (0, side) for side, wanted in zip(found, shape, strict=True)
        ):
            raise MalformedFile(f"tensor {name!r} has shape {list(found)}, not {list(shape)}")
        return found

    def optional_vector(self, name: str, *lengths: int) -> str:
        return self.vector(name, *lengths) if name in self._tensors else ""

    def linear(self, stem: str, *, columns: int = 0, rows: int = 0) -> Linear:
        """`<stem>.weight` with `<stem>.bias` where there is one; 0 leaves a side open."""
        shape = self.tensor(f"{stem}.weight").shape
        wanted = (rows or shape[0], columns or shape[-1])
        if shape != wanted:
            raise MalformedFile(
                f"tensor '{stem}.weight' has shape {list(shape)}, not {list(wanted)}"
            )
        bias = self.optional_vector(f"{stem}.bias", shape[0])
        return Linear(weight=f"{stem}.weight", rows=shape[0], columns=shape[1], bias=bias)

    def has_tensor(self, name: str) -> bool:
        return name in self._tensors

    def names_with(self, stems: tuple[str, ...]) -> tuple[str, ...]:
        """Tensors whose names begin with one of `stems`."""
        return tuple(name for name in self._tensors if name.startswith(stems))

    def _key(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _in_range(self, key: str, value: int) -> int:
        if not 0 <= value < MAX_COUNT:
            raise MalformedFile(f"{self._key(key)} is {value}: out of range")
        return value

    def _known(self, key: str, default: object) -> str:
        """The whole key; without a default it must be there."""
        full = self._key(key)
        if default is None and full not in self._metadata:
            raise MalformedFile(f"the metadata key {full} is missing")
        return full
