"""Fp32 weights to GGML blocks and a GGUF to a smaller one; the block layouts are `converters.blocks`'.

`ENCODERS[name]` writes one type; a new type is one class in the file of its family.
"""

from converters.quantise import floats, k_quants, simple
from converters.quantise.encoder import ENCODERS, Encoder

__all__ = ["ENCODERS", "Encoder", "floats", "k_quants", "simple"]
