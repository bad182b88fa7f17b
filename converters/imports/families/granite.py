"""IBM's Granite 3, dense: llama with four multipliers."""

from __future__ import annotations

from converters.imports.config import Config
from converters.imports.families import decoder
from converters.imports.families.decoder import Tensors
from converters.imports.families.llama import NAMES
from converters.imports.recipe import Recipe, head_sizes


def granite(config: Config, tensors: Tensors) -> Recipe:
    config.require("hidden_act", "silu", default="silu")
    sizes = head_sizes(config)
    keys = decoder.size_keys(config, "granite", sizes)
    keys.number("attention.scale", config.number("attention_multiplier", 1.0))
    keys.number("embedding_scale", config.number("embedding_multiplier", 1.0))
    keys.number("residual_scale", config.number("residual_multiplier", 1.0))
    keys.number("logit_scale", config.number("logits_scaling", 1.0))
    return decoder.recipe(config, tensors, keys, NAMES, sizes)
