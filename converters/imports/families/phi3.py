"""Phi 3, 3.5, 4 and 4 mini: q, k and v in one matrix, gate and up in another."""

from __future__ import annotations

from converters.imports.config import Config
from converters.imports.families import decoder
from converters.imports.families.decoder import Tensors
from converters.imports.recipe import Names, Recipe, head_sizes

NAMES: Names = {
    **decoder.ENDS,
    **decoder.NORMS,
    "layers.#.self_attn.qkv_proj": "blk.#.attn_qkv",
    "layers.#.self_attn.o_proj": "blk.#.attn_output",
    "layers.#.mlp.gate_up_proj": "blk.#.ffn_up",
    "layers.#.mlp.down_proj": "blk.#.ffn_down",
}


def phi3(config: Config, tensors: Tensors) -> Recipe:
    config.require("hidden_act", "silu", default="silu")
    sizes = head_sizes(config)
    keys = decoder.size_keys(config, "phi3", sizes, epsilon=1e-5)
    notes = decoder.window_note(config)
    return decoder.recipe(config, tensors, keys, NAMES, sizes, notes=notes)
