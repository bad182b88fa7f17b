"""Llama 1 to 3, Mistral, Mixtral, SmolLM 1 and 2, TinyLlama and what else is built as they are."""

from __future__ import annotations

from converters.imports.config import Config
from converters.imports.families import decoder
from converters.imports.families.decoder import Tensors
from converters.imports.recipe import Names, Recipe, Rule, head_sizes

NAMES: Names = {**decoder.PLAIN, **decoder.PAIRED}
MIXTURE: Names = {
    **decoder.ENDS,
    **decoder.NORMS,
    **decoder.ATTENTION,
    **decoder.PAIRED,
    "layers.#.block_sparse_moe.gate": Rule("blk.#.ffn_gate_inp", is_wide=True),
    "layers.#.block_sparse_moe.experts.#.w1": Rule("blk.#.ffn_gate_exps", stacks=True),
    "layers.#.block_sparse_moe.experts.#.w2": Rule("blk.#.ffn_down_exps", stacks=True),
    "layers.#.block_sparse_moe.experts.#.w3": Rule("blk.#.ffn_up_exps", stacks=True),
}


def llama(config: Config, tensors: Tensors) -> Recipe:
    config.require("hidden_act", "silu", default="silu")
    sizes = head_sizes(config)
    keys = decoder.size_keys(config, "llama", sizes)
    notes = decoder.window_note(config)
    return decoder.recipe(config, tensors, keys, NAMES, sizes, notes=notes)


def mixtral(config: Config, tensors: Tensors) -> Recipe:
    config.require("hidden_act", "silu", default="silu")
    sizes = head_sizes(config)
    keys = decoder.size_keys(config, "llama", sizes, epsilon=1e-5)
    keys.count("expert_count", config.count("num_local_experts", 8))
    keys.count("expert_used_count", config.count("num_experts_per_tok", 2))
    notes = decoder.window_note(config)
    return decoder.recipe(config, tensors, keys, MIXTURE, sizes, base=1e6, notes=notes)
