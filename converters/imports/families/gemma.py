"""Gemma 1, 2 and 3 (of the latter the text model): norms are stored without the 1 they add."""

from __future__ import annotations

import re

from converters.errors import Unsupported
from converters.imports.config import Config
from converters.imports.families import decoder
from converters.imports.families.decoder import Tensors
from converters.imports.recipe import Keys, Names, Recipe, Rule, Sizes, head_sizes
from converters.imports.rope import local_base

_ENDS: Names = {**decoder.ENDS, "norm": Rule("output_norm", shift=1.0)}
GEMMA: Names = {
    **_ENDS,
    **decoder.ATTENTION,
    **decoder.FEED_FORWARD,
    "layers.#.input_layernorm": Rule("blk.#.attn_norm", shift=1.0),
    "layers.#.post_attention_layernorm": Rule("blk.#.ffn_norm", shift=1.0),
}
SANDWICH: Names = {
    **GEMMA,
    "layers.#.post_attention_layernorm": Rule("blk.#.post_attention_norm", shift=1.0),
    "layers.#.pre_feedforward_layernorm": Rule("blk.#.ffn_norm", shift=1.0),
    "layers.#.post_feedforward_layernorm": Rule("blk.#.post_ffw_norm", shift=1.0),
}
GEMMA3: Names = {
    **SANDWICH,
    "layers.#.self_attn.q_norm": Rule("blk.#.attn_q_norm", shift=1.0),
    "layers.#.self_attn.k_norm": Rule("blk.#.attn_k_norm", shift=1.0),
}
# Where the text model lies in a file that also has an image tower, of older and newer programs.
_TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
_TOWER = re.compile(rf"{decoder.BUFFERS.pattern}|(^|\.)(vision_tower|multi_modal_projector)\.")
# The largest models scale by the width over the heads; llama.cpp knows them by their blocks.
_LARGEST = {"gemma2": 46, "gemma3": 62}
_PERIOD = 6
_GEMMA3_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
}


def gemma(config: Config, tensors: Tensors) -> Recipe:
    config = config.with_defaults({"max_position_embeddings": 8192})
    keys, sizes = _keys(config, "gemma")
    return decoder.recipe(config, tensors, keys, GEMMA, sizes, is_tied=True)


def gemma2(config: Config, tensors: Tensors) -> Recipe:
    config = config.with_defaults({"max_position_embeddings": 8192})
    keys, sizes = _keys(config, "gemma2")
    _check_scale(config, "gemma2", sizes)
    keys.number("attn_logit_softcapping", config.number("attn_logit_softcapping", 50.0))
    keys.number("final_logit_softcapping", config.number("final_logit_softcapping", 30.0))
    keys.count("attention.sliding_window", config.count("sliding_window", 4096))
    return decoder.recipe(config, tensors, keys, SANDWICH, sizes, is_tied=True)


def gemma3(config: Config, tensors: Tensors) -> Recipe:
    """`text_config` in a file of the whole model, whose own class fills in what it leaves out."""
    config = config.part("text_config") if config.has("text_config") else config
    config = config.with_defaults(_GEMMA3_DEFAULTS)
    config.refuse("use_bidirectional_attention")
    config.refuse("attn_logit_softcapping")
    keys, sizes = _keys(config, "gemma3")
    _check_scale(config, "gemma3", sizes)
    if config.has("final_logit_softcapping"):
        keys.number("final_logit_softcapping", config.number("final_logit_softcapping"))
    keys.count("attention.sliding_window", config.count("sliding_window", 4096))
    _windows(config, keys)
    keys.number("rope.freq_base_swa", local_base(config, 10000.0))
    return decoder.recipe(
        config,
        tensors,
        keys,
        GEMMA3,
        sizes,
        is_tied=True,
        base=1e6,
        prefixes=_TEXT_PREFIXES,
        left_out=_TOWER,
    )


def _keys(config: Config, architecture: str) -> tuple[Keys, Sizes]:
    """The oldest files say "gelu" and mean its tanh form, as their own program reads them."""
    if config.has("hidden_activation"):
        config.require("hidden_activation", "gelu_pytorch_tanh", default="")
    else:
        config.require("hidden_act", "gelu_pytorch_tanh", "gelu", default="gelu")
    sizes = head_sizes(config, head_size=256)
    return decoder.size_keys(config, architecture, sizes), sizes


def _windows(config: Config, keys: Keys) -> None:
    """Block by block where the file says so, else by the period."""
    if not config.has("layer_types"):
        period = config.first("sliding_window_pattern", "_sliding_window_pattern")
        keys.count("attention.sliding_window_pattern", config.count(period, _PERIOD))
        return
    kinds = config.texts("layer_types")
    if len(kinds) != config.count("num_hidden_layers") or set(kinds) - {
        "sliding_attention",
        "full_attention",
    }:
        raise Unsupported("config.json: layer_types other than sliding_attention, full_attention")
    keys.flags("attention.sliding_window_pattern", [kind == "sliding_attention" for kind in kinds])


def _check_scale(config: Config, architecture: str, sizes: Sizes) -> None:
    """GGUF has no key for it: the architecture's own rule must give the same."""
    scalar = config.number("query_pre_attn_scalar", 256.0)
    is_largest = config.count("num_hidden_layers") == _LARGEST[architecture]
    expected = config.count("hidden_size") / sizes.heads if is_largest else sizes.head_size
    if scalar != expected:
        raise Unsupported(
            f"config.json: query_pre_attn_scalar {scalar:g} beside heads of {sizes.head_size} is"
            f" not supported ({expected:g} is)"
        )
