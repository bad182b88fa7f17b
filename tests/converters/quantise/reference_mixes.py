"""Writes `mix_tables.json` with llama.cpp's own `llama_model_quantize`.

The wheel that the tests use does not export that function; any libllama does, for instance the one
in the npm package @node-llama-cpp/linux-x64. Needs a folder with libllama and libggml:

    python -m tests.converters.quantise.reference_mixes FOLDER
"""

from __future__ import annotations

import ctypes
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from converters.gguf import GgufFile, TensorInfo, Value, read_header
from converters.gguf_types import ValueType
from converters.gguf_writer import NewTensor, Slices, TypedValue, plan_file, write_file
from converters.quantise.mixes import FILE_TYPES
from tests.converters.quantise.mix_cases import CASES, TOLD_FILE_TYPES, told

TABLES = pathlib.Path(__file__).with_name("mix_tables.json")
_DTYPES = {"int64": ValueType.INT32, "int32": ValueType.INT32, "bool": ValueType.BOOL}


class _Parameters(ctypes.Structure):
    """Only the first two fields are set; the rest, and room beyond, keep their defaults."""

    _fields_ = [
        ("thread_count", ctypes.c_int32),
        ("file_type", ctypes.c_int32),
        ("rest", ctypes.c_uint64 * 32),
    ]


def main(folder: pathlib.Path) -> None:
    library = _library(folder)
    tables: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        source, result = pathlib.Path(scratch, "source.gguf"), pathlib.Path(scratch, "result.gguf")
        for case, make in CASES.items():
            header = make()
            write_zeros(header, source)
            tables[case] = {}
            for file_type in TOLD_FILE_TYPES:
                _quantise(library, source, result, file_type)
                types = {tensor.name: tensor.type_name for tensor in read_header(result).tensors}
                tables[case][file_type] = told(header, types, file_type)
    TABLES.write_text(json.dumps(tables, indent=1) + "\n")


def write_zeros(header: GgufFile, path: pathlib.Path) -> None:
    """A file with this header and no weight but zero."""
    metadata = {key: _typed(value) for key, value in header.metadata.items()}
    tensors = [NewTensor(each.name, each.shape, each.type_name) for each in header.tensors]
    with path.open("wb") as file:
        write_file(file, plan_file(metadata, tensors), _zeros)


def _zeros(tensor: TensorInfo) -> Slices:
    return [bytes(tensor.nbytes)]


def _typed(value: Value) -> TypedValue:
    match value:
        case bool():
            return TypedValue(ValueType.BOOL, value)
        case int():
            return TypedValue(ValueType.UINT32, value)
        case float():
            return TypedValue(ValueType.FLOAT32, value)
        case np.ndarray():
            return TypedValue(_DTYPES.get(str(value.dtype), ValueType.FLOAT32), value)
        case _:
            return TypedValue(ValueType.STRING, value)


def _quantise(library: Any, source: pathlib.Path, result: pathlib.Path, file_type: str) -> None:
    parameters = library.llama_model_quantize_default_params()
    parameters.file_type = FILE_TYPES[file_type].number
    code = library.llama_model_quantize(
        str(source).encode(), str(result).encode(), ctypes.byref(parameters)
    )
    if code:
        raise RuntimeError(f"llama.cpp does not write {file_type}")


def _library(folder: pathlib.Path) -> Any:
    for pattern in ("libggml-base*.so*", "libggml.*so*"):
        ctypes.CDLL(str(next(folder.glob(pattern))), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(next(folder.glob("libllama.*so*"))))
    library.llama_model_quantize_default_params.restype = _Parameters
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    return library


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
