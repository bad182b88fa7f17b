"""GGML block types: what the bytes of a quantised tensor say, without loss. One class per type.

`BLOCK_TYPES[name]` unpacks, repacks for MatMulNBits and dequantises; it reads no files and knows no
target but the layout of that operator. A new type is one class in the file of its family.
"""

from converters.blocks import floats, fp4, i_quants, k_quants, nonlinear, simple, ternary
from converters.blocks.block_type import (
    BLOCK_TYPES,
    BlockType,
    CodedBlockType,
    Codes,
    Form,
    Levels,
    Repacked,
)

__all__ = [
    "BLOCK_TYPES",
    "BlockType",
    "CodedBlockType",
    "Codes",
    "Form",
    "Levels",
    "Repacked",
    "floats",
    "fp4",
    "i_quants",
    "k_quants",
    "nonlinear",
    "simple",
    "ternary",
]
