"""One file with text and tower inside, as Ollama's library publishes them, of the two that llama.cpp wants.

The numbers are the same; names, keys and some layouts are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from tests.models.random_gguf import write_metadata
from tests.models.random_parts import Value
from tests.models.random_vision_towers import DEEPSTACK_BLOCKS, TOWERS

Tensors = dict[str, tuple[np.ndarray, Any]]  # values and GGML type
GEMMA3 = {
    "v.patch_embd.": "v.patch_embedding.",
    "v.position_embd.": "v.position_embedding.",
    "v.post_ln.": "v.post_layernorm.",
    ".ln1.": ".layer_norm1.",
    ".ln2.": ".layer_norm2.",
    ".attn_out.": ".attn_output.",
    ".ffn_up.": ".mlp.fc1.",
    ".ffn_down.": ".mlp.fc2.",
    "mm.input_projection.": "mm.mm_input_projection.",
    "mm.soft_emb_norm.": "mm.mm_soft_emb_norm.",
}
QWEN25 = {
    "v.patch_embd.weight.1": "v.patch_embd_1.weight",
    "v.patch_embd.weight": "v.patch_embd_0.weight",
    "v.post_ln.": "v.merger.ln_q.",
    "mm.": "v.merger.mlp.",
}
QWEN3 = {
    "v.patch_embd.": "v.patch_embed.",
    "v.position_embd.": "v.pos_embed.",
    "v.post_ln.": "v.merger.norm.",
    "mm.0.": "v.merger.linear_fc1.",
    "mm.2.": "v.merger.linear_fc2.",
    ".ffn_up.": ".mlp.linear_fc1.",
    ".ffn_down.": ".mlp.linear_fc2.",
    ".ln1.": ".norm1.",
    ".ln2.": ".norm2.",
    **{
        f"v.deepstack.{block}.{old}": f"v.deepstack_merger.{place}.{new}"
        for place, block in enumerate(DEEPSTACK_BLOCKS)
        for old, new in (("norm", "norm"), ("fc1", "linear_fc1"), ("fc2", "linear_fc2"))
    },
}
MISTRAL3 = {
    "v.patch_embd.": "v.patch_conv.",
    "v.pre_ln.": "v.encoder_norm.",
    ".attn_out.": ".attn_output.",
    ".ln1.": ".attn_norm.",
    ".ln2.": ".ffn_norm.",
    "mm.1.": "mm.linear_1.",
    "mm.2.": "mm.linear_2.",
    "mm.patch_merger.": "mm.patch_merger.merging_layer.",
    "mm.input_norm.": "mm.norm.",
}
NAMES = {"gemma3": GEMMA3, "qwen2.5vl": QWEN25, "qwen3vl": QWEN3, "pixtral-merged": MISTRAL3}
ARCHITECTURES = {
    "gemma3": "gemma3",
    "qwen2.5vl": "qwen25vl",
    "qwen3vl": "qwen3vl",
    "pixtral-merged": "mistral3",
}


def make_library_file(path: Path, kind: str, text: Path, projector: Path) -> Path:
    """Write the file that holds both of what `random_vision` made of a kind."""
    base, tower = GGUFReader(text), GGUFReader(projector)
    old, new = str(base.fields["general.architecture"].contents()), ARCHITECTURES[kind]
    writer = GGUFWriter(path, new)
    for key, field in base.fields.items():
        if key.startswith(("GGUF.", "general.architecture")):
            continue
        parts = field.types
        inner = parts[1] if parts[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key.replace(f"{old}.", f"{new}."), field.contents(), parts[0], inner)
    write_metadata(writer, _keys(kind, new))
    own, tensors = _read(base), _tower_tensors(kind, tower)
    if kind == "pixtral-merged":
        row = list(base.fields["tokenizer.ggml.tokens"].contents()).index("[IMG_BREAK]")
        own["token_embd.weight"][0][row] = tensors.pop("v.token_embd.img_break")[0]
    for name, (values, type_name) in (own | tensors).items():
        writer.add_tensor(name, values, raw_dtype=type_name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _keys(kind: str, architecture: str) -> dict[str, Value]:
    shape = TOWERS[kind].shape
    prefix = f"{architecture}.vision."
    found: dict[str, Value] = {
        f"{prefix}block_count": shape.blocks,
        f"{prefix}embedding_length": shape.width,
        f"{prefix}feed_forward_length": shape.feed_forward,
        f"{prefix}attention.head_count": shape.heads,
        f"{prefix}attention.layer_norm_epsilon": 1e-6,
        f"{prefix}patch_size": shape.patch,
        f"{prefix}num_channels": 3,
    }
    if kind == "gemma3":
        positions = (shape.image // shape.patch // shape.merge) ** 2
        found["gemma3.mm.tokens_per_image"] = positions
        found["gemma3.vision.image_size"] = shape.image
    elif kind == "qwen2.5vl":
        found[f"{prefix}spatial_merge_size"] = shape.merge
        found[f"{prefix}fullatt_block_indexes"] = [*range(1, shape.blocks, 2)]
    elif kind == "qwen3vl":
        found[f"{prefix}spatial_merge_size"] = shape.merge
        found[f"{prefix}deepstack_visual_indexes"] = [*DEEPSTACK_BLOCKS]
    else:
        found["mistral3.spatial_merge_size"] = shape.merge
        found[f"{prefix}image_size"] = shape.image
    return found


def _read(reader: GGUFReader) -> Tensors:
    return {each.name: (np.array(each.data), each.tensor_type) for each in reader.tensors}


def _tower_tensors(kind: str, reader: GGUFReader) -> Tensors:
    found = _read(reader)
    if kind == "qwen3vl":
        found = _unpacked(found)
    if kind == "pixtral-merged":
        found = {name: _as_trained(name, each) for name, each in found.items()}
    return {_told(name, NAMES[kind]): each for name, each in found.items()}


def _told(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if old in name:
            return name.replace(old, new)
    return name


def _unpacked(found: Tensors) -> Tensors:
    """Query, key and value apart; both frames' kernels in one [E · 3, frames, p, p]."""
    result: Tensors = {}
    for name, (values, kind) in found.items():
        if ".attn_qkv." in name:
            pieces = np.split(values, 3)
            for letter, piece in zip("qkv", pieces, strict=True):
                result[name.replace("attn_qkv", f"attn_{letter}")] = (piece, kind)
        elif name == "v.patch_embd.weight":
            both = np.stack([values, found["v.patch_embd.weight.1"][0]], axis=2)
            result[name] = (both.reshape(-1, *both.shape[2:]), kind)
        elif name != "v.patch_embd.weight.1":
            result[name] = (values, kind)
    return result


def _as_trained(name: str, each: tuple[np.ndarray, Any]) -> tuple[np.ndarray, Any]:
    """Rows of queries and keys: neighbours that are rotated together become halves."""
    values, kind = each
    if not name.endswith((".attn_q.weight", ".attn_k.weight")):
        return each
    heads = TOWERS["pixtral-merged"].shape.heads
    paired = values.reshape(heads, -1, 2, values.shape[-1])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(values.shape), kind
