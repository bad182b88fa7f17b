"""What decoders share: the names of their tensors, the keys of their sizes, the tied head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from converters.errors import MalformedFile
from converters.imports.config import Config
from converters.imports.recipe import (
    Keys,
    Names,
    Placed,
    Recipe,
    Rule,
    Sizes,
    place_tensors,
)
from converters.imports.rope import rope_dimensions, rope_keys
from converters.imports.safetensors import StoredTensor

Tensors = Mapping[str, StoredTensor]

HEAD = "lm_head"
# Buffers that are computed anew, in files of older programs.
BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|\.attn\.bias$")

ATTENTION: Names = {
    "layers.#.self_attn.q_proj": "blk.#.attn_q",
    "layers.#.self_attn.k_proj": "blk.#.attn_k",
    "layers.#.self_attn.v_proj": "blk.#.attn_v",
    "layers.#.self_attn.o_proj": "blk.#.attn_output",
}
FEED_FORWARD: Names = {
    "layers.#.mlp.gate_proj": "blk.#.ffn_gate",
    "layers.#.mlp.up_proj": "blk.#.ffn_up",
    "layers.#.mlp.down_proj": "blk.#.ffn_down",
}
ENDS: Names = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    HEAD: "output",
}
NORMS: Names = {
    "layers.#.input_layernorm": "blk.#.attn_norm",
    "layers.#.post_attention_layernorm": "blk.#.ffn_norm",
}
HEAD_NORMS: Names = {
    "layers.#.self_attn.q_norm": "blk.#.attn_q_norm",
    "layers.#.self_attn.k_norm": "blk.#.attn_k_norm",
}
PLAIN: Names = {**ENDS, **NORMS, **ATTENTION, **FEED_FORWARD}
# For llama.cpp's NORM rotation: neighbours turn together, not the halves of a head.
PAIRED: Names = {
    "layers.#.self_attn.q_proj": Rule("blk.#.attn_q", pairs="query"),
    "layers.#.self_attn.k_proj": Rule("blk.#.attn_k", pairs="key"),
}
PREFIXES = ("model.",)


def size_keys(config: Config, architecture: str, sizes: Sizes, *, epsilon: float = 1e-6) -> Keys:
    """The keys that every decoder has."""
    keys = Keys(architecture)
    keys.count("context_length", config.count("max_position_embeddings"))
    keys.count("embedding_length", config.count("hidden_size"))
    keys.count("block_count", config.count("num_hidden_layers"))
    keys.count("feed_forward_length", config.count("intermediate_size"))
    keys.count("attention.head_count", sizes.heads)
    keys.count("attention.head_count_kv", sizes.kv_heads)
    keys.count("attention.key_length", sizes.head_size)
    keys.count("attention.value_length", sizes.head_size)
    keys.number("attention.layer_norm_rms_epsilon", config.number("rms_norm_eps", epsilon))
    return keys


def recipe(
    config: Config,
    tensors: Tensors,
    keys: Keys,
    names: Names,
    sizes: Sizes,
    *,
    is_tied: bool = False,
    base: float = 10000.0,
    prefixes: Iterable[str] = PREFIXES,
    left_out: re.Pattern[str] = BUFFERS,
    notes: tuple[str, ...] = (),
) -> Recipe:
    """`is_tied` is what holds where the file does not say."""
    rope = rope_keys(config, keys, rope_dimensions(config, sizes.head_size), base=base)
    heads, tensors = _split_head(tensors)
    placed, dropped = place_tensors(tensors, names, sizes, prefixes=prefixes, left_out=left_out)
    if config.flag("tie_word_embeddings", is_tied):
        dropped = (*dropped, *heads)
    elif not heads:
        raise MalformedFile("tensor 'lm_head.weight' is missing, and the head is not tied")
    else:
        more, _ = place_tensors(heads, names, sizes, prefixes=("language_model.",))
        placed = [*placed, *more]
    _require_blocks(placed, config.count("num_hidden_layers"))
    return Recipe(
        architecture=keys.architecture,
        keys=keys.found,
        tensors=(*placed, *rope),
        left_out=dropped,
        notes=notes,
    )


def _split_head(tensors: Tensors) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The head's tensors, and all others."""
    is_head = re.compile(rf"(?:^|\.){HEAD}\.(?:weight|bias)$").search
    heads = {name: tensor for name, tensor in tensors.items() if is_head(name)}
    return heads, {name: tensor for name, tensor in tensors.items() if name not in heads}


def _require_blocks(placed: list[Placed], count: int) -> None:
    """Blocks beyond those that the configuration counts would be lost in silence."""
    for tensor in placed:
        match = re.match(r"blk\.(\d+)\.", tensor.name)
        if match and int(match[1]) >= count:
            raise MalformedFile(f"tensor {tensor.name!r} is beyond the model's {count} blocks")


def window_note(config: Config) -> tuple[str, ...]:
    """For architectures whose recipe lets every id see all others, as llama.cpp does."""
    window = config.count("sliding_window", 0)
    if not window or window >= config.count("max_position_embeddings"):
        return ()
    return (f"the sliding window of {window} is not applied: longer texts see all of themselves",)
