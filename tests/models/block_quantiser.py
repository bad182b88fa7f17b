"""Float weights to GGML blocks with llama.cpp's own quantiser, and the usual mixes of block types.

Owns the choice of a type per tensor (`plan_block_type`) and the quantising (`quantise`); knows
nothing of files. The quantiser is the function that the `xllamacpp` wheel exports.
"""

import ctypes
import functools
import re

import numpy as np
import numpy.typing as npt
import xllamacpp.xllamacpp as native
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

# What llama.cpp takes instead where the columns do not fill blocks of 256.
FALLBACKS = {
    "Q2_K": "IQ4_NL",
    "Q3_K": "IQ4_NL",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
    "Q8_0": "F16",
}
# Mix name → (most tensors, tensors that get more bits, attn_v and ffn_down in every block?).
MIXES = {
    "Q3_K_M": ("Q3_K", "Q5_K", True),
    "Q4_K_S": ("Q4_K", "Q5_K", False),
    "Q4_K_M": ("Q4_K", "Q6_K", False),
    "Q5_K_M": ("Q5_K", "Q6_K", False),
}


def plan_block_type(name: str, columns: int, types: str, blocks: int) -> str:
    """The block type of one matrix under a plain type ("Q4_K": every matrix) or a mix ("Q4_K_M")."""
    if types not in MIXES:
        chosen = types
    elif name == "output.weight":
        chosen = "Q6_K"
    else:
        most, better, is_everywhere = MIXES[types]
        is_better = is_everywhere or _has_more_bits(name, blocks)
        chosen = better if is_better and re.search(r"attn_v|ffn_down", name) else most
    return chosen if columns % block_size(chosen) == 0 else FALLBACKS[chosen]


def _has_more_bits(name: str, blocks: int) -> bool:
    """True in the first and last eighth of the blocks and in every third one between."""
    found = re.match(r"blk\.(\d+)\.", name)
    if found is None:
        return False
    index, eighth = int(found[1]), blocks // 8
    return index < eighth or index >= 7 * blocks // 8 or (index - eighth) % 3 == 2


def block_size(type_name: str) -> int:
    """Weights in one block."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[type_name]][0]


def block_bytes(type_name: str) -> int:
    return GGML_QUANT_SIZES[GGMLQuantizationType[type_name]][1]


def quantise(weights: npt.NDArray[np.float32], type_name: str) -> npt.NDArray[np.uint8]:
    """f32 [rows, columns] to u8 [rows, bytes per row], with equal importance of every column.

    Raises ValueError where the columns do not fill whole blocks.
    """
    rows, columns = weights.shape
    if columns % block_size(type_name):
        raise ValueError(f"{columns} columns do not fill blocks of {type_name}")
    weights = np.ascontiguousarray(weights, np.float32)
    if type_name == "F32":
        return weights.view(np.uint8)
    row_bytes = columns // block_size(type_name) * block_bytes(type_name)
    packed = np.empty((rows, row_bytes), np.uint8)
    importance = np.ones(columns, np.float32)  # some of the IQ types refuse to work without
    written = ggml_library().ggml_quantize_chunk(
        GGMLQuantizationType[type_name].value,
        _floats(weights),
        packed.ctypes.data,
        0,
        rows,
        columns,
        _floats(importance),
    )
    if written != packed.nbytes:
        raise ValueError(f"{type_name}: {written} bytes written, {packed.nbytes} expected")
    return packed


def _floats(array: npt.NDArray[np.float32]) -> "ctypes._Pointer[ctypes.c_float]":
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


@functools.cache
def ggml_library() -> ctypes.CDLL:
    library = ctypes.CDLL(native.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_float),
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_float),
    ]
    return library
