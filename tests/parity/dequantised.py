"""The same model with every matrix as F32: what a quantised file says, without integer arithmetic.

llama.cpp rounds activations to 8 bits wherever weights are quantised, so the exact meaning of such a
file can only be had from its F32 twin. gguf's own dequantiser is used, not ours.
"""

from __future__ import annotations

import pathlib

import gguf
import numpy as np
from gguf.constants import GGUFValueType


def dequantised(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Writes `target` with the metadata of `source` and F32 tensors."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = [int(dimension) for dimension in reversed(tensor.shape)]
        writer.add_tensor(tensor.name, weights.reshape(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
