"""What a model of mlx-lm can be given, and the config that all of them share.

mlx-lm's modules compute what their author wrote, not what a config says; so each family lists the
features that its module has and those it cannot do without; any other file is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from converters.architectures.experts import Experts
from converters.architectures.mixers import Attention, LatentAttention
from converters.architectures.model import BlockShape, ModelShape
from converters.artifact import RopeTable
from converters.errors import Unsupported
from converters.targets.mlx.forms import Number
from converters.targets.mlx.models.features import features_of
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.rope import Config, with_rope

# What `rope.rope_config` can say to a module that reads `rope_scaling`.
ROPE_TABLES = frozenset({"rope factors", "rope scaling"})


def no_biases(model: ModelShape) -> frozenset[str]:
    return frozenset()


def attention_of(block: BlockShape) -> Attention:
    """Of a block that attends, in a family all of whose blocks do."""
    if not isinstance(block.mixer, Attention):
        raise Unsupported(f"blocks of {type(block.mixer).__name__} are not supported on MLX yet")
    return block.mixer


def first_attention(model: ModelShape) -> Attention | LatentAttention:
    """Of the first block that attends; every architecture has one."""
    mixers = (block.mixer for block in model.blocks)
    return next(each for each in mixers if isinstance(each, Attention | LatentAttention))


def experts_of(model: ModelShape) -> Experts:
    """Of the first block of a mixture."""
    return next(each for each in model.networks() if isinstance(each, Experts))


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One model type of mlx-lm.

    `config` adds to what all decoders have (`decoder_config`), and may raise Unsupported; `rope` adds
    the rotations. `biases` names the roles that must have one; where the file has none, zeros are
    written; `selection_bias` is the path of one that experts are chosen with. `norm_shift` is
    added to norm weights. `keeps_pairs`: the module rotates neighbouring numbers as llama.cpp's NORM.
    `ignores_windows`: it sees everything, so the context ends where the window does.
    `has_dense_router`: the router takes no codes. `joins_latent`: latent attention keeps what each
    head makes of the latent, from one matrix; otherwise the latent itself, and has two stacks.
    `fused`: what becomes of one matrix for q, k and v: it stays, is cut in three, or its rows are put
    in the order [q; k; v] head by head.
    """

    model_type: str
    carries: frozenset[str]
    needs: frozenset[str] = frozenset()
    config: Callable[[ModelShape], Config] = lambda model: {}
    rope: Callable[[Config, ModelShape, dict[str, RopeTable]], Config] = with_rope
    biases: Callable[[ModelShape], frozenset[str]] = no_biases
    selection_bias: str = ""
    names: Names = Names()
    number: Number = "F16"
    norm_shift: float = 0.0
    keeps_pairs: bool = False
    ignores_windows: bool = False
    has_dense_router: bool = False
    joins_latent: bool = False
    fused: Literal["whole", "cut", "by head"] = "whole"


def check(model: ModelShape, family: Family) -> None:
    """Raises Unsupported naming the features that the family's module does not have."""
    wanted = features_of(model)
    if family.ignores_windows:
        wanted.discard("sliding window")
    if unmet := sorted(family.needs - wanted):
        raise Unsupported(
            f"mlx-lm's {family.model_type} model has {' and '.join(unmet)},"
            f" which this {model.architecture} file has not"
        )
    if missing := sorted(wanted - family.carries):
        raise Unsupported(
            f"mlx-lm's {family.model_type} model has no {', no '.join(missing)},"
            f" which this {model.architecture} file needs"
        )
    family.config(model)  # what it refuses is refused before anything is written


def context_length(model: ModelShape, family: Family) -> int:
    """How far the module computes what the file means."""
    if not family.ignores_windows:
        return model.context_length
    windows = [attention_of(block).window for block in model.blocks]
    return min([model.context_length, *(window for window in windows if window)])


def cached_numbers(model: ModelShape, family: Family) -> int:
    """What all blocks keep for one id."""
    if model.encoder:
        return 0
    total = 0
    for block in model.blocks:
        match block.mixer:
            case LatentAttention(heads=heads) as latent if family.joins_latent:
                total += heads * (latent.nope_size + latent.rope_size + latent.value_size)
            case LatentAttention():
                total += block.mixer.head_size
            case mixer:
                total += 2 * mixer.kv_heads * mixer.head_size
    return total


def decoder_config(model: ModelShape, family: Family) -> Config:
    """The keys that every decoder's config has."""
    attention = first_attention(model)
    return {
        "model_type": family.model_type,
        "hidden_size": model.embedding_length,
        "num_hidden_layers": len(model.blocks),
        "intermediate_size": next((each.down.columns for each in model.networks()), 0),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_size,
        "rms_norm_eps": model.epsilon,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": context_length(model, family),
        "tie_word_embeddings": model.is_tied,
    } | family.config(model)
