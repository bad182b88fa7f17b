"""A quantised copy of a GGUF, planned whole from the header: types, sizes, keys, refusals by name."""

from __future__ import annotations

import msgspec

from converters.errors import Unsupported
from converters.gguf import GgufFile, TensorInfo, integer_value
from converters.gguf_types import ValueType
from converters.gguf_writer import GgufPlan, NewTensor, TypedValue, plan_file, typed_metadata
from converters.quantise.mixes import (
    FILE_TYPES,
    FLOAT_TYPES,
    Choice,
    choose_types,
    is_quantisable,
)

# Of the block layouts; ggml's number.
QUANTISATION_VERSION = 2
_NAMED_FALLBACKS = 3


class QuantisingPlan(msgspec.Struct, frozen=True):
    """`sources` has the old tensor of every new one in `file`, in the same order.

    `note` says in words which tensors could not get the type that the file type wants; "" if all.
    """

    file: GgufPlan
    sources: tuple[TensorInfo, ...]
    note: str

    @property
    def source_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.sources)


def plan_quantising(header: GgufFile, file_type: str) -> QuantisingPlan:
    """Raises Unsupported for an unknown type and for files that are not whole models in floats."""
    if file_type not in FILE_TYPES:
        known = ", ".join(FILE_TYPES)
        raise Unsupported(
            f"unsupported quantization type {file_type} - supported types are {known}"
        )
    _check(header)
    choices = choose_types(header, file_type)
    tensors = [
        NewTensor(tensor.name, tensor.shape, choices[tensor.name].type_name)
        for tensor in header.tensors
    ]
    metadata = typed_metadata(header) | {
        "general.quantization_version": TypedValue(ValueType.UINT32, QUANTISATION_VERSION),
        "general.file_type": TypedValue(ValueType.UINT32, FILE_TYPES[file_type].number),
    }
    return QuantisingPlan(plan_file(metadata, tensors), header.tensors, _note(choices))


def _check(header: GgufFile) -> None:
    if integer_value(header.metadata, "split.count", 1) > 1:
        raise Unsupported("one part of a split GGUF cannot be quantised by itself")
    for tensor in header.tensors:
        if is_quantisable(tensor) and tensor.type_name not in FLOAT_TYPES:
            raise Unsupported(
                "quantization is only supported for F16, BF16 and F32 models:"
                f" tensor {tensor.name!r} is {tensor.type_name}"
            )


def _note(choices: dict[str, Choice]) -> str:
    """Says first the kinds of replacement, then a few names."""
    replaced = {
        name: choice for name, choice in choices.items() if choice.type_name != choice.wanted
    }
    if not replaced:
        return ""
    kinds = dict.fromkeys(
        f"{each.type_name} instead of {each.wanted}" for each in replaced.values()
    )
    names = list(replaced)[:_NAMED_FALLBACKS]
    more = len(replaced) - len(names)
    named = ", ".join(names) + (f" and {more} more" if more else "")
    return f"rows that do not divide into blocks get {', '.join(kinds)}: {named}"
