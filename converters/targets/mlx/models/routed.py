"""What the modules for experts chosen as by DeepSeek V3 share: dense blocks first, groups, a shared expert."""

from __future__ import annotations

from converters.architectures.experts import Experts
from converters.architectures.model import ModelShape
from converters.errors import Unsupported
from converters.targets.mlx.models.family import Config, experts_of

SIGMOID_ROUTED = frozenset(
    {
        "experts",
        "dense blocks among experts",
        "shared expert without gate",
        "scaled experts",
        "unnormalised experts",
        "experts by sigmoid",
        "bias on choosing experts",
        "experts in groups",
    }
)


def dense_blocks(model: ModelShape) -> int:
    """How many blocks come before those with experts. Raises Unsupported where some come after."""
    kinds = [isinstance(block.feed_forward, Experts) for block in model.blocks]
    count = kinds.index(True) if True in kinds else len(kinds)
    if not all(kinds[count:]):
        raise Unsupported("mlx-lm's modules of this kind have their dense blocks first")
    return count


def shared_experts(experts: Experts) -> int:
    """The shared one counted in widths of the others. Raises Unsupported for a part of one."""
    width = experts.shared.down.columns if experts.shared else 0
    count, rest = divmod(width, experts.down.columns)
    if rest:
        raise Unsupported("mlx-lm's modules of this kind have shared experts as wide as the others")
    return count


def routed_experts(model: ModelShape) -> Config:
    """The keys by DeepSeek's names."""
    first: Config = {"first_k_dense_replace": dense_blocks(model)}
    if dense_blocks(model) == len(model.blocks):
        return first | {"n_routed_experts": None}
    experts = experts_of(model)
    return first | {
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.used,
        "moe_intermediate_size": experts.down.columns,
        "n_shared_experts": shared_experts(experts) or None,
        "routed_scaling_factor": experts.scale,
        "norm_topk_prob": experts.is_normalised,
        "n_group": experts.groups,
        "topk_group": experts.groups_used,
    }
