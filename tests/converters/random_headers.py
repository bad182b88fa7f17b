"""Headers of every test architecture without a file: the tensors and keys that `random_gguf` writes."""

from __future__ import annotations

import dataclasses

import numpy as np

from converters.gguf import GGML_TYPES, GgufFile, TensorInfo, Value
from tests.models.random_architectures import ARCHITECTURES, BLOCKS, Shape, common_metadata

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
TOKENS = 300


def shape_of(architecture: str) -> Shape:
    spec = ARCHITECTURES[architecture]
    return Shape(
        blocks=BLOCKS.get(architecture, 2),
        embedding=256,
        heads=4,
        kv_heads=4 if "bert" in architecture else 2,
        feed_forward=512,
        context=2048,
        vocabulary=TOKENS,
        head_size=spec.head_size or 64,
        is_tied=spec.is_tied,
    )


def random_header(
    architecture: str, type_name: str = "F32", extra: dict[str, Value] | None = None, **sizes: int
) -> GgufFile:
    """Matrices of `type_name` where their columns fill its blocks, else F32.

    `sizes` replaces fields of the shape, `extra` adds or replaces keys, given whole.
    """
    spec = ARCHITECTURES[architecture]
    shape = dataclasses.replace(shape_of(architecture), **sizes)
    tensors, offset = [], 1 << 12
    for weight in spec.weights(shape):
        kind = _TYPES[type_name if weight.is_matrix else "F32"]
        if weight.shape[-1] % kind.block_size:
            kind = _TYPES["F32"]
        nbytes = int(np.prod(weight.shape)) // kind.block_size * kind.type_size
        tensors.append(TensorInfo(weight.name, weight.shape, kind.name, offset, nbytes))
        offset += -(-nbytes // 32) * 32
    own = common_metadata(shape) | spec.metadata(shape)
    metadata: dict[str, Value] = {
        "general.architecture": spec.name,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"t{index}" for index in range(TOKENS)],
    }
    whole = {f"{spec.name}.{key}": value for key, value in own.items()} | spec.whole_metadata
    for key, value in whole.items():
        held: Value = np.array(value) if isinstance(value, list) and key != "labels" else value  # pyright: ignore[reportAssignmentType]
        metadata[key] = held
    return GgufFile(3, 32, metadata | (extra or {}), tuple(tensors), offset, 1 << 12)
