"""`nemotron_h`, `nemotron_h_moe` → mlx-lm's `nemotron_h`: a block is a Mamba 2, attends, or is a network."""

from __future__ import annotations

from msgspec.structs import replace

from converters.architectures.experts import Experts
from converters.architectures.mixers import Attention, Mamba2
from converters.architectures.model import BlockShape, ModelShape
from converters.targets.mlx.models.family import Config, Family, experts_of
from converters.targets.mlx.models.mamba2 import first_mamba2
from converters.targets.mlx.models.names import Names

_SHAPE = frozenset({"mamba 2", "blocks of one part", "block without rotation"})
_CARRIED = _SHAPE | {"mamba 2 in groups", "free head size"}
_PLAIN = frozenset({"feed-forward without gate", "relu_squared"})
_NAMES = Names(
    embedding="backbone.embeddings",
    output_norm="backbone.norm_f",
    block="backbone.layers.{}",
    query="mixer.q_proj",
    key="mixer.k_proj",
    value="mixer.v_proj",
    attention_output="mixer.o_proj",
    mamba="mixer",
    up="mixer.up_proj",
    down="mixer.down_proj",
    router="mixer.gate",
    experts="mixer.switch_mlp",
    experts_up="fc1",
    experts_down="fc2",
    latent_down="mixer.fc1_latent_proj",
    latent_up="mixer.fc2_latent_proj",
    shared="mixer.shared_experts",
    attention_norm="norm",
    feed_forward_norm="norm",
)


def _config(model: ModelShape) -> Config:
    mamba = first_mamba2(model)
    return {
        "attention_bias": False,
        "mamba_num_heads": mamba.heads,
        "mamba_head_dim": mamba.size,
        "mamba_proj_bias": False,
        "ssm_state_size": mamba.state,
        "conv_kernel": mamba.length,
        "n_groups": mamba.groups,
        "mlp_bias": False,
        "layer_norm_epsilon": model.epsilon,
        "use_bias": False,
        "use_conv_bias": True,
        "hybrid_override_pattern": [_letter(block) for block in model.blocks],
    }


def _letter(block: BlockShape) -> str:
    match block.mixer:
        case Mamba2():
            return "M"
        case Attention():
            return "*"
        case _:
            return "E" if isinstance(block.feed_forward, Experts) else "-"


def _mixture(model: ModelShape) -> Config:
    experts = experts_of(model)
    return _config(model) | {
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.down.columns,
        "moe_latent_size": experts.up.columns if experts.latent_down else None,
        "n_shared_experts": 1 if experts.shared else None,
        "moe_shared_expert_intermediate_size": experts.shared.down.columns
        if experts.shared
        else None,
        "norm_topk_prob": experts.is_normalised,
        "routed_scaling_factor": experts.scale,
        "n_group": experts.groups,
        "topk_group": experts.groups_used,
    }


FAMILY = Family(
    model_type="nemotron_h",
    config=_config,
    names=_NAMES,
    carries=_CARRIED | _PLAIN,
    needs=_SHAPE,
)
MIXTURE = replace(
    FAMILY,
    config=_mixture,
    has_dense_router=True,
    selection_bias="mixer.gate.e_score_correction_bias",
    carries=_CARRIED
    | _PLAIN
    | {
        "experts",
        "experts without gates",
        "experts of relu_squared",
        "experts over a latent",
        "shared expert without gate",
        "shared expert of relu_squared",
        "dense blocks among experts",
        "scaled experts",
        "unnormalised experts",
        "experts by sigmoid",
        "bias on choosing experts",
        "experts in groups",
    },
    needs=_SHAPE | {"experts of relu_squared", "experts by sigmoid"},
)
