"""BERT, RoBERTa, XLM-RoBERTa and Nomic's BERT: encoders, with what sentence-transformers says beside.

RoBERTa counts positions from the padding id on: the rows before are left out, as llama.cpp does.
"""

from __future__ import annotations

import re

import msgspec

from converters.errors import Unsupported
from converters.gguf_types import ValueType
from converters.gguf_writer import TypedValue
from converters.imports.config import Config
from converters.imports.families.decoder import Tensors
from converters.imports.recipe import Keys, Names, Recipe, Rule, Sizes, place_tensors

_BLOCK: Names = {
    "encoder.layer.#.attention.self.query": "blk.#.attn_q",
    "encoder.layer.#.attention.self.key": "blk.#.attn_k",
    "encoder.layer.#.attention.self.value": "blk.#.attn_v",
    "encoder.layer.#.attention.output.dense": "blk.#.attn_output",
    "encoder.layer.#.attention.output.LayerNorm": "blk.#.attn_output_norm",
    "encoder.layer.#.intermediate.dense": "blk.#.ffn_up",
    "encoder.layer.#.output.dense": "blk.#.ffn_down",
    "encoder.layer.#.output.LayerNorm": "blk.#.layer_output_norm",
}
_ENDS: Names = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": Rule("token_types", is_wide=True),
    "embeddings.LayerNorm": "token_embd_norm",
}
_BERT_CLASSIFIER: Names = {"pooler.dense": "cls", "classifier": "cls.output"}
_ROBERTA_CLASSIFIER: Names = {"classifier.dense": "cls", "classifier.out_proj": "cls.output"}
NOMIC: Names = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": Rule("token_types", is_wide=True),
    "emb_ln": "token_embd_norm",
    "encoder.layers.#.attn.Wqkv": "blk.#.attn_qkv",
    "encoder.layers.#.attn.out_proj": "blk.#.attn_output",
    "encoder.layers.#.norm1": "blk.#.attn_output_norm",
    "encoder.layers.#.norm2": "blk.#.layer_output_norm",
    "encoder.layers.#.mlp.fc11": "blk.#.ffn_up",
    "encoder.layers.#.mlp.fc12": "blk.#.ffn_gate",
    "encoder.layers.#.mlp.fc2": "blk.#.ffn_down",
}
_PREFIXES = ("bert.", "roberta.")
_LEFT_OUT = re.compile(r"(^|\.)(position_ids|pooler\.dense\.(weight|bias)|cls\..*|lm_head\..*)$")
MEAN, CLS, LAST, RANK = 1, 2, 3, 4


class Pooling(msgspec.Struct, frozen=True):
    """What the folder says beside the model; `kind` 0: nothing. `length` 0: the model's own."""

    kind: int = 0
    length: int = 0


def bert(config: Config, tensors: Tensors, pooling: Pooling) -> Recipe:
    return _encoder(config, tensors, pooling, first_position=0, classifier=_BERT_CLASSIFIER)


def roberta(config: Config, tensors: Tensors, pooling: Pooling) -> Recipe:
    first = config.count("pad_token_id", 1) + 1
    return _encoder(config, tensors, pooling, first_position=first, classifier=_ROBERTA_CLASSIFIER)


def _encoder(
    config: Config, tensors: Tensors, pooling: Pooling, *, first_position: int, classifier: Names
) -> Recipe:
    config.require("hidden_act", "gelu", default="gelu")
    config.require("position_embedding_type", "absolute", default="absolute")
    config.refuse("is_decoder")
    ranks = any(name.startswith("classifier.") for name in tensors)
    heads = config.count("num_attention_heads")
    longest = config.count("max_position_embeddings") - first_position
    length = max(0, min(longest, pooling.length or longest))
    positions = Rule("position_embd", is_wide=True, skip_rows=first_position, keep_rows=length)
    names = {**_ENDS, **_BLOCK, "embeddings.position_embeddings": positions}
    names |= classifier if ranks else {}
    keys = _size_keys(config, "bert", heads)
    notes = _pool(keys, Pooling(RANK) if ranks else pooling, length)
    placed, dropped = place_tensors(
        tensors, names, Sizes(heads, heads, 0), prefixes=_PREFIXES, left_out=_LEFT_OUT
    )
    return Recipe(
        architecture="bert", keys=keys.found, tensors=tuple(placed), left_out=dropped, notes=notes
    )


def nomic(config: Config, tensors: Tensors, pooling: Pooling) -> Recipe:
    """Named by Nomic's own code, which is not run; what that code can do beyond is refused."""
    config.require("activation_function", "swiglu", "silu", default="swiglu")
    for key in ("prenorm", "use_rms_norm", "moe_every_n_layers", "num_experts", "parallel_block"):
        config.refuse(key)
    if config.number("rotary_emb_fraction", 1.0) != 1.0 or config.has("rotary_scaling_factor"):
        raise Unsupported("config.json: rotary_emb_fraction or rotary_scaling_factor")
    heads = config.count("n_head")
    renamed = config.with_defaults(
        {
            "hidden_size": config.count("n_embd"),
            "num_hidden_layers": config.count("n_layer"),
            "intermediate_size": config.count("n_inner"),
            "layer_norm_eps": config.number("layer_norm_epsilon", 1e-12),
        }
    )
    longest = config.count("n_positions")
    length = min(longest, pooling.length or longest)
    keys = _size_keys(renamed, "nomic-bert", heads)
    keys.number("rope.freq_base", config.number("rotary_emb_base", 10000.0))
    notes = _pool(keys, pooling, length)
    placed, dropped = place_tensors(
        tensors, NOMIC, Sizes(heads, heads, 0), prefixes=_PREFIXES, left_out=_LEFT_OUT
    )
    return Recipe(
        architecture="nomic-bert",
        keys=keys.found,
        tensors=tuple(placed),
        left_out=dropped,
        notes=notes,
    )


def _size_keys(config: Config, architecture: str, heads: int) -> Keys:
    keys = Keys(architecture)
    keys.count("embedding_length", config.count("hidden_size"))
    keys.count("block_count", config.count("num_hidden_layers"))
    keys.count("feed_forward_length", config.count("intermediate_size"))
    keys.count("attention.head_count", heads)
    keys.number("attention.layer_norm_epsilon", config.number("layer_norm_eps", 1e-12))
    keys.flag("attention.causal", False)
    kinds = config.count("type_vocab_size", 2)
    keys.found["tokenizer.ggml.token_type_count"] = TypedValue(ValueType.UINT32, kinds)
    return keys


def _pool(keys: Keys, pooling: Pooling, length: int) -> tuple[str, ...]:
    """`length`: where sentence-transformers cuts texts, never after the last position."""
    keys.count("context_length", length)
    keys.count("pooling_type", pooling.kind or MEAN)
    if pooling.kind:
        return ()
    return ("the folder names no pooling: the mean of all ids is taken",)


def read_pooling(modules: object, config: Config, length: int) -> Pooling:
    """From sentence-transformers' `modules.json` and `1_Pooling/config.json`.

    Raises Unsupported for steps after the model that are none of these.
    """
    if not modules:
        return Pooling()
    known = ("Transformer", "Pooling", "Normalize")
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type") if isinstance(module, dict) else module).rsplit(".", 1)[-1]
        if kind not in known:
            raise Unsupported(f"modules.json: the step {kind[:60]!r} is not supported")
    modes = {
        "pooling_mode_mean_tokens": MEAN,
        "pooling_mode_cls_token": CLS,
        "pooling_mode_lasttoken": LAST,
    }
    chosen = [kind for key, kind in modes.items() if config.flag(key, False)]
    others = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
    others += ("pooling_mode_weightedmean_tokens",)
    for key in others:
        config.refuse(key)
    if len(chosen) != 1:
        raise Unsupported(f"1_Pooling/config.json asks for {len(chosen)} poolings at once")
    return Pooling(chosen[0], length)
