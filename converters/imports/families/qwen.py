"""Qwen 2, 2.5 and 3, and Qwen 3's mixtures of experts."""

from __future__ import annotations

from converters.errors import Unsupported
from converters.imports.config import Config
from converters.imports.families import decoder
from converters.imports.families.decoder import Tensors
from converters.imports.recipe import Keys, Names, Recipe, Rule, Sizes, head_sizes

QWEN3: Names = {**decoder.PLAIN, **decoder.HEAD_NORMS}
QWEN3_MIXTURE: Names = {
    **decoder.ENDS,
    **decoder.NORMS,
    **decoder.ATTENTION,
    **decoder.HEAD_NORMS,
    "layers.#.mlp.gate": Rule("blk.#.ffn_gate_inp", is_wide=True),
    "layers.#.mlp.experts.#.gate_proj": Rule("blk.#.ffn_gate_exps", stacks=True),
    "layers.#.mlp.experts.#.up_proj": Rule("blk.#.ffn_up_exps", stacks=True),
    "layers.#.mlp.experts.#.down_proj": Rule("blk.#.ffn_down_exps", stacks=True),
}


def qwen2(config: Config, tensors: Tensors) -> Recipe:
    keys, sizes = _keys(config, "qwen2")
    return decoder.recipe(config, tensors, keys, decoder.PLAIN, sizes)


def qwen3(config: Config, tensors: Tensors) -> Recipe:
    keys, sizes = _keys(config, "qwen3", head_size=128)
    return decoder.recipe(config, tensors, keys, QWEN3, sizes)


def qwen3_mixture(config: Config, tensors: Tensors) -> Recipe:
    if not config.flag("norm_topk_prob", False):
        raise Unsupported("config.json: experts without 'norm_topk_prob' are not supported")
    if config.count("decoder_sparse_step", 1) != 1 or config.counts("mlp_only_layers"):
        raise Unsupported("config.json: blocks without experts among others are not supported")
    keys, sizes = _keys(config, "qwen3moe", head_size=128)
    keys.count("expert_count", config.count(config.first("num_experts", "num_local_experts")))
    keys.count("expert_used_count", config.count("num_experts_per_tok"))
    keys.count("expert_feed_forward_length", config.count("moe_intermediate_size"))
    return decoder.recipe(config, tensors, keys, QWEN3_MIXTURE, sizes)


def _keys(config: Config, architecture: str, head_size: int = 0) -> tuple[Keys, Sizes]:
    config.require("hidden_act", "silu", default="silu")
    config.refuse("use_sliding_window")
    sizes = head_sizes(config, head_size=head_size)
    return decoder.size_keys(config, architecture, sizes), sizes
