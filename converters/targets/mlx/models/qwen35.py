"""`qwen35`, `qwen35moe` → mlx-lm's `qwen3_5`, `qwen3_5_moe`: Gated DeltaNets but for every p-th block.

`qwen3next` is given to the latter, too: it differs from mlx-lm's `qwen3_next` in keeping the projections
apart, as files do, so that each can have codes of its own. Their modules lie below `language_model`; a factor for norms is in the file as the modules want it.
"""

from __future__ import annotations

from converters.architectures.mixers import GatedDeltaNet
from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import (
    ROPE_TABLES,
    Config,
    Family,
    experts_of,
    first_attention,
)
from converters.targets.mlx.models.names import Names

_NAMES = Names(
    embedding="language_model.model.embed_tokens",
    output_norm="language_model.model.norm",
    output="language_model.lm_head",
    block="language_model.model.layers.{}",
)
_SHAPE = frozenset({"gated delta net", "gated attention", "norms of q and k"})
_COMMON = ROPE_TABLES | _SHAPE | {"tied output", "free head size", "partial rotation"}


def _config(model: ModelShape) -> Config:
    nets = [block.mixer for block in model.blocks if isinstance(block.mixer, GatedDeltaNet)]
    net, rotated = nets[0], model.rope["global"].dimensions
    return {
        "full_attention_interval": _period(model),
        "linear_num_value_heads": net.value_heads,
        "linear_num_key_heads": net.key_heads,
        "linear_key_head_dim": net.size,
        "linear_value_head_dim": net.size,
        "linear_conv_kernel_dim": net.length,
        "attention_bias": False,
        "rope_parameters": {"partial_rotary_factor": rotated / first_attention(model).head_size},
    }


def _period(model: ModelShape) -> int:
    """The last of every p blocks attends; the nets are all alike."""
    nets = [isinstance(block.mixer, GatedDeltaNet) for block in model.blocks]
    period = nets.index(False) + 1
    if nets != [bool((at + 1) % period) for at in range(len(nets))]:
        raise Unsupported(f"the attending blocks of this {model.architecture} follow no period")
    mixers = (block.mixer for block in model.blocks)
    found = (each for each in mixers if isinstance(each, GatedDeltaNet))
    if len({(each.key_heads, each.value_heads, each.size, each.length) for each in found}) > 1:
        raise Unsupported(f"the delta nets of this {model.architecture} have several shapes")
    return period


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return _config(model) | {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.down.columns,
        "shared_expert_intermediate_size": experts.shared.down.columns if experts.shared else 0,
        "norm_topk_prob": experts.is_normalised,
    }


FAMILY = Family(model_type="qwen3_5", config=_config, names=_NAMES, carries=_COMMON, needs=_SHAPE)
MIXTURE = Family(
    model_type="qwen3_5_moe",
    config=_mixture,
    names=_NAMES,
    carries=_COMMON | {"experts", "shared expert", "unnormalised experts"},
    needs=_SHAPE | {"shared expert"},
)
