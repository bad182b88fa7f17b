"""Vision towers inside models' own files, as Ollama's library publishes them, told in projectors' words.

Only names and keys change, as in `converters.architectures.library`; tensor data stays where it is.
Source: Ollama's `llama/compat/llama-ollama-compat.cpp`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from converters.errors import MalformedFile, Unsupported
from converters.gguf import GGML_TYPES, GgufFile, TensorInfo, Value, integer_value

# Set for towers that are not as projector files have them; no published file has these keys.
ROTATES_HALVES = "vision.rotates_halves"
FRAMES = "vision.frames_in_kernel"
# Qwen's kernels are over two frames, which are the same for an image.
_QWEN_FRAMES = 2
_BREAK, _BREAK_ID = "[IMG_BREAK]", 12
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_TOWER = ("v.", "mm.")
_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
Metadata = dict[str, Value]


def inner_tower(file: GgufFile) -> GgufFile | None:
    """The tower in a model's own file as a projector file would have it; None where none is known.

    Raises MalformedFile and Unsupported.
    """
    rule = _RULES.get(file.architecture)
    return rule(file) if rule else None


def _gemma3(file: GgufFile) -> GgufFile:
    names = {
        "v.patch_embedding.": "v.patch_embd.",
        "v.position_embedding.": "v.position_embd.",
        "v.post_layernorm.": "v.post_ln.",
        ".layer_norm1.": ".ln1.",
        ".layer_norm2.": ".ln2.",
        ".attn_output.": ".attn_out.",
        ".mlp.fc1.": ".ffn_up.",
        ".mlp.fc2.": ".ffn_down.",
        "mm.mm_input_projection.": "mm.input_projection.",
        "mm.mm_soft_emb_norm.": "mm.soft_emb_norm.",
    }
    metadata = _taken(file, "gemma3", _HALF, _HALF) | {"clip.use_gelu": True}
    positions = integer_value(file.metadata, "gemma3.mm.tokens_per_image", 0)
    if positions:
        metadata["clip.vision.projector.scale_factor"] = _pooled(metadata, positions)
    return _told(file, metadata, names)


def _pooled(metadata: Metadata, positions: int) -> int:
    """Patches in a row that become one of `positions` positions."""
    patch = integer_value(metadata, "clip.vision.patch_size", 0)
    grid = integer_value(metadata, "clip.vision.image_size", 0) // max(1, patch)
    side = math.isqrt(max(0, positions))
    if not side or side**2 != positions or grid % side:
        raise MalformedFile(f"gemma3.mm.tokens_per_image is {positions} for {grid}² patches")
    return grid // side


def _qwen25vl(file: GgufFile) -> GgufFile:
    names = {
        "v.patch_embd_0.weight": "v.patch_embd.weight",
        "v.patch_embd_1.weight": "v.patch_embd.weight.1",
        "v.merger.ln_q.": "v.post_ln.",
        "v.merger.mlp.": "mm.",
    }
    metadata = _taken(file, "qwen2.5vl_merger", _CLIP_MEAN, _CLIP_STD) | {
        "clip.use_silu": True,
        "clip.vision.n_wa_pattern": _period(file),
    }
    metadata.setdefault("clip.vision.attention.layer_norm_epsilon", 1e-6)
    return _told(file, metadata, names)


def _period(file: GgufFile) -> int:
    """Of the blocks that see the whole image, every n-th one."""
    found = _integers(file, "fullatt_block_indexes")
    count = integer_value(file.metadata, f"{file.architecture}.vision.block_count", 0)
    if not found:
        return 8
    period = max(1, found[0] + 1)
    expected = range(period - 1, count, period)
    if len(found) != len(expected) or any(map(operator.ne, found, expected)):
        raise Unsupported(f"blocks {found} that see the whole image, which are not every n-th one")
    return period


def _qwen3vl(file: GgufFile) -> GgufFile:
    names = {
        "v.patch_embed.": "v.patch_embd.",
        "v.pos_embed.": "v.position_embd.",
        "v.merger.norm.": "v.post_ln.",
        "v.merger.linear_fc1.": "mm.0.",
        "v.merger.linear_fc2.": "mm.2.",
        ".mlp.linear_fc1.": ".ffn_up.",
        ".mlp.linear_fc2.": ".ffn_down.",
        ".norm1.": ".ln1.",
        ".norm2.": ".ln2.",
    }
    for place, block in enumerate(_integers(file, "deepstack_visual_indexes")):
        old, new = f"v.deepstack_merger.{place}.", f"v.deepstack.{block}."
        names |= {f"{old}linear_fc": f"{new}fc", f"{old}norm.": f"{new}norm."}
    metadata = _taken(file, "qwen3vl_merger", _HALF, _HALF) | {"clip.use_gelu": True}
    prefix = f"{file.architecture}.vision"
    for key, name in (("shortest_edge", "image_min_pixels"), ("longest_edge", "image_max_pixels")):
        if file.metadata.get(f"{prefix}.{key}"):
            metadata[f"clip.vision.{name}"] = file.metadata[f"{prefix}.{key}"]
    metadata.setdefault("clip.vision.attention.layer_norm_epsilon", 1e-6)
    return _with_whole_kernel(_told(file, metadata, names))


def _with_whole_kernel(file: GgufFile) -> GgufFile:
    """The kernel [E · 3, frames, p, p] as [E, 3 · frames, p, p]."""
    kernel = _tensor(file, "v.patch_embd.weight")
    if len(kernel.shape) != 4 or kernel.shape[1] != _QWEN_FRAMES or kernel.shape[0] % 3:
        raise MalformedFile(f"tensor {kernel.name!r} has shape {list(kernel.shape)}")
    shape = (kernel.shape[0] // 3, 3 * _QWEN_FRAMES, *kernel.shape[2:])
    tensors = tuple(
        replace(each, shape=shape) if each.name == kernel.name else each for each in file.tensors
    )
    metadata = file.metadata | {f"clip.{FRAMES}": _QWEN_FRAMES}
    return replace(file, tensors=tensors, metadata=metadata)


def _mistral3(file: GgufFile) -> GgufFile:
    """Its queries and keys are as they were trained: halves of a head are rotated together."""
    names = {
        "v.patch_conv.": "v.patch_embd.",
        "v.encoder_norm.": "v.pre_ln.",
        ".attn_output.": ".attn_out.",
        ".attn_norm.": ".ln1.",
        ".ffn_norm.": ".ln2.",
        "mm.linear_1.": "mm.1.",
        "mm.linear_2.": "mm.2.",
        "mm.patch_merger.merging_layer.": "mm.patch_merger.",
        "mm.norm.": "mm.input_norm.",
    }
    metadata = _taken(file, "pixtral", _CLIP_MEAN, _CLIP_STD) | {
        "clip.use_silu": True,
        f"clip.{ROTATES_HALVES}": True,
    }
    metadata.setdefault("clip.vision.attention.layer_norm_epsilon", 1e-5)
    merge = file.metadata.get("mistral3.spatial_merge_size")
    if merge is not None:
        metadata["clip.vision.spatial_merge_size"] = merge
    told = _told(file, metadata, names)
    return replace(told, tensors=(*told.tensors, _break_row(file)))


def _break_row(file: GgufFile) -> TensorInfo:
    """The row of [IMG_BREAK] in the text model's table, as a tensor of its own."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    row = tokens.index(_BREAK) if isinstance(tokens, list) and _BREAK in tokens else _BREAK_ID
    table = _tensor(file, "token_embd.weight")
    if len(table.shape) != 2 or not row < table.shape[0]:
        raise MalformedFile(f"tensor {table.name!r} has no row for {_BREAK}")
    kind, columns = _TYPES[table.type_name], table.shape[1]
    size = columns // kind.block_size * kind.type_size
    return TensorInfo(
        name="v.token_embd.img_break",
        shape=(columns,),
        type_name=table.type_name,
        offset=table.offset + row * size,
        nbytes=size,
    )


_RULES: dict[str, Callable[[GgufFile], GgufFile]] = {
    "gemma3": _gemma3,
    "mistral3": _mistral3,
    "qwen25vl": _qwen25vl,
    "qwen3vl": _qwen3vl,
    "qwen3vlmoe": _qwen3vl,
    "qwen35": _qwen3vl,
    "qwen35moe": _qwen3vl,
}


def _taken(
    file: GgufFile, projector: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Metadata:
    """`clip.` keys of the tower's own ones, and what such files leave out."""
    prefix = re.compile(rf"^{re.escape(file.architecture)}\.vision\.")
    found = {key: value for key, value in file.metadata.items() if prefix.match(key)}
    metadata: Metadata = {
        "general.architecture": "clip",
        "clip.projector_type": projector,
        "clip.has_vision_encoder": True,
        "clip.vision.image_mean": np.array(mean, np.float32),
        "clip.vision.image_std": np.array(std, np.float32),
    }
    if "general.name" in file.metadata:
        metadata["general.name"] = file.metadata["general.name"]
    return metadata | {prefix.sub("clip.vision.", key): value for key, value in found.items()}


def _told(file: GgufFile, metadata: Metadata, names: dict[str, str]) -> GgufFile:
    """Only the tower's tensors, parts of whose names are replaced."""

    def told(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    tensors = tuple(
        replace(each, name=told(each.name)) for each in file.tensors if each.name.startswith(_TOWER)
    )
    return replace(file, metadata=metadata, tensors=tensors)


def _integers(file: GgufFile, key: str) -> list[int]:
    value = file.metadata.get(f"{file.architecture}.vision.{key}")
    if value is None:
        return []
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        raise MalformedFile(f"{file.architecture}.vision.{key} does not hold integers")
    return [int(entry) for entry in value]


def _tensor(file: GgufFile, name: str) -> TensorInfo:
    for tensor in file.tensors:
        if tensor.name == name:
            return tensor
    raise MalformedFile(f"tensor {name!r} is missing")
