"""Headers without a file: what `read_header` would say of a small decoder, made in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.gguf import GGML_TYPES, GgufFile, TensorInfo, Value

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
Shapes = dict[str, tuple[int, ...]]


def decoder_shapes(
    *, blocks: int = 2, heads: int = 4, kv_heads: int = 2, head_size: int = 64, tokens: int = 300
) -> Shapes:
    """Tensor name → shape of an untied llama 256 wide with a feed-forward network of 512."""
    width, inner = 256, 512
    shapes: Shapes = {"token_embd.weight": (tokens, width), "output_norm.weight": (width,)}
    shapes["output.weight"] = (tokens, width)
    for index in range(blocks):
        shapes |= {
            f"blk.{index}.attn_norm.weight": (width,),
            f"blk.{index}.attn_q.weight": (heads * head_size, width),
            f"blk.{index}.attn_k.weight": (kv_heads * head_size, width),
            f"blk.{index}.attn_v.weight": (kv_heads * head_size, width),
            f"blk.{index}.attn_output.weight": (width, heads * head_size),
            f"blk.{index}.ffn_norm.weight": (width,),
            f"blk.{index}.ffn_gate.weight": (inner, width),
            f"blk.{index}.ffn_up.weight": (inner, width),
            f"blk.{index}.ffn_down.weight": (width, inner),
        }
    return shapes


def header(
    architecture: str = "llama",
    shapes: Shapes | None = None,
    *,
    type_name: str = "Q4_K",
    types: dict[str, str] | None = None,
    metadata: dict[str, Any] | None = None,
) -> GgufFile:
    """Matrices of `type_name` unless `types` names another; keys of `metadata` None are removed."""
    shapes = decoder_shapes() if shapes is None else shapes
    tensors, offset = [], 1 << 12
    for name, shape in shapes.items():
        kind = _TYPES[(types or {}).get(name, type_name if len(shape) > 1 else "F32")]
        nbytes = int(np.prod(shape)) // kind.block_size * kind.type_size
        tensors.append(TensorInfo(name, shape, kind.name, offset, nbytes))
        offset += -(-nbytes // 32) * 32
    found: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": "small",
        f"{architecture}.block_count": 2,
        f"{architecture}.context_length": 2048,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"t{index}" for index in range(300)],
    }
    found |= metadata or {}
    kept = {key: value for key, value in found.items() if value is not None}
    return GgufFile(3, 32, kept, tuple(tensors), offset, 1 << 12)
