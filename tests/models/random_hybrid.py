"""Test architectures most of whose blocks are Mamba 2; see `random_architectures` for what an entry is."""

from collections.abc import Iterator

from tests.models.random_mixtures import EXPERTS, expert_metadata, experts, router, shared_expert
from tests.models.random_parts import (
    Architecture,
    Shape,
    Value,
    Weight,
    attention,
    bias,
    embedding_and_head,
    gated_feed_forward,
    matrix,
    norm,
)
from tests.models.random_plain import plain_feed_forward
from tests.models.random_routed import choice_bias

MAMBA_HEADS, MAMBA_STATE, MAMBA_KERNEL = 8, 32, 4


def mamba2(prefix: str, shape: Shape, *, groups: int = 1) -> Iterator[Weight]:
    """Twice as wide as the hidden state. Decays from a tenth to nearly everything of a step."""
    inner, heads = 2 * shape.embedding, MAMBA_HEADS
    channels = inner + 2 * groups * MAMBA_STATE
    yield matrix(f"{prefix}ssm_in.weight", inner + channels + heads, shape.embedding)
    yield Weight(f"{prefix}ssm_conv1d.weight", (channels, MAMBA_KERNEL), 0.7, is_matrix=False)
    yield bias(f"{prefix}ssm_conv1d.bias", channels)
    yield bias(f"{prefix}ssm_dt.bias", heads)
    decays = tuple(-0.02 * 2.0**head for head in range(heads))
    yield Weight(f"{prefix}ssm_a", (heads, 1), 0.0, is_matrix=False, values=decays)
    yield Weight(f"{prefix}ssm_d", (heads, 1), 0.3, 1.0, is_matrix=False)
    group = (groups, inner // groups)
    yield Weight(f"{prefix}ssm_norm.weight", group, 0.3, 1.0, is_matrix=False)
    yield matrix(f"{prefix}ssm_out.weight", shape.embedding, inner)


def recurrent_metadata(shape: Shape, *, groups: int = 1) -> dict[str, Value]:
    return {
        "ssm.conv_kernel": MAMBA_KERNEL,
        "ssm.inner_size": 2 * shape.embedding,
        "ssm.state_size": MAMBA_STATE,
        "ssm.time_step_rank": MAMBA_HEADS,
        "ssm.group_count": groups,
    }


def granite_attends(index: int) -> bool:
    return index % 2 == 1


def granitehybrid_weights(shape: Shape, *, groups: int = 1) -> Iterator[Weight]:
    """Every other block attends."""
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        if granite_attends(index):
            yield from attention(prefix, shape)
        else:
            yield from mamba2(prefix, shape, groups=groups)
        yield norm(f"{prefix}ffn_norm.weight", shape.embedding)
        yield from gated_feed_forward(prefix, shape)


def granitehybrid_mixture(shape: Shape) -> Iterator[Weight]:
    for weight in granitehybrid_weights(shape):
        if ".ffn_" not in weight.name or weight.name.endswith("ffn_norm.weight"):
            yield weight
    for index in range(shape.blocks):
        yield from experts(f"blk.{index}.", shape)
        yield from shared_expert(f"blk.{index}.", shape)


def granitehybrid_metadata(
    shape: Shape, *, groups: int = 1, is_rotated: bool = False
) -> dict[str, Value]:
    return {
        **recurrent_metadata(shape, groups=groups),
        "attention.head_count_kv": [
            shape.kv_heads if granite_attends(index) else 0 for index in range(shape.blocks)
        ],
        "rope.scaling.finetuned": is_rotated,
        "attention.scale": 0.08,
        "embedding_scale": 12.0,
        "residual_scale": 0.22,
        "logit_scale": 1.2,
    }


NEMOTRON_GROUPS, NEMOTRON_LATENT = 2, 128
# Which part each block is: M(amba), attention, - a network, E(xperts).
NEMOTRON_DENSE, NEMOTRON_MIXTURE = "M*-M-", "M*EME"


def nemotron_parts(shape: Shape, pattern: str) -> Iterator[tuple[str, str]]:
    for index in range(shape.blocks):
        yield f"blk.{index}.", pattern[index % len(pattern)]


def nemotron_h_weights(shape: Shape, pattern: str) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    for prefix, part in nemotron_parts(shape, pattern):
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        match part:
            case "M":
                yield from mamba2(prefix, shape, groups=NEMOTRON_GROUPS)
            case "*":
                yield from attention(prefix, shape)
            case "-":
                yield from plain_feed_forward(prefix, shape, has_bias=False)
            case _:
                kept = (*experts(prefix, shape), *shared_expert(prefix, shape))
                yield from (weight for weight in kept if "ffn_gate_" not in weight.name)
                yield router(prefix, shape)
                yield choice_bias(prefix)


def nemotron_h_metadata(shape: Shape, pattern: str) -> dict[str, Value]:
    """llama.cpp wants the other epsilon, too: blocks that predict ahead have a LayerNorm."""
    parts = [part for _, part in nemotron_parts(shape, pattern)]
    inner = {"-": shape.feed_forward, "E": shape.feed_forward // 2}
    return {
        **recurrent_metadata(shape, groups=NEMOTRON_GROUPS),
        "attention.layer_norm_epsilon": 1e-5,
        "attention.head_count_kv": [shape.kv_heads if part == "*" else 0 for part in parts],
        "feed_forward_length": [inner.get(part, 0) for part in parts],
    }


def nemotron_h_moe_metadata(shape: Shape) -> dict[str, Value]:
    return {
        **nemotron_h_metadata(shape, NEMOTRON_MIXTURE),
        **expert_metadata(shape),
        "expert_shared_count": 1,
        "expert_weights_norm": True,
        "expert_weights_scale": 1.5,
    }


def nemotron_h_latent_weights(shape: Shape) -> Iterator[Weight]:
    """The experts are narrower at both ends."""
    latent, inner = NEMOTRON_LATENT, shape.feed_forward // 2
    for weight in nemotron_h_weights(shape, NEMOTRON_MIXTURE):
        prefix, _, name = weight.name.rpartition(".ffn_")
        match name:
            case "up_exps.weight":
                yield Weight(weight.name, (EXPERTS, inner, latent), latent**-0.5)
                yield matrix(f"{prefix}.ffn_latent_down.weight", latent, shape.embedding)
                yield matrix(f"{prefix}.ffn_latent_up.weight", shape.embedding, latent)
            case "down_exps.weight":
                yield Weight(weight.name, (EXPERTS, latent, inner), inner**-0.5)
            case _:
                yield weight


HYBRIDS: dict[str, Architecture] = {
    "granitehybrid": Architecture(
        "granitehybrid", granitehybrid_weights, granitehybrid_metadata, is_tied=True
    ),
    "granitehybrid-mixture": Architecture(
        "granitehybrid",
        granitehybrid_mixture,
        lambda shape: {
            **granitehybrid_metadata(shape),
            **expert_metadata(shape),
            "feed_forward_length": shape.feed_forward // 2,
        },
        is_tied=True,
    ),
    "nemotron_h": Architecture(
        "nemotron_h",
        lambda shape: nemotron_h_weights(shape, NEMOTRON_DENSE),
        lambda shape: nemotron_h_metadata(shape, NEMOTRON_DENSE),
        head_size=96,
    ),
    "nemotron_h_moe": Architecture(
        "nemotron_h_moe",
        lambda shape: nemotron_h_weights(shape, NEMOTRON_MIXTURE),
        nemotron_h_moe_metadata,
    ),
    # As in Nemotron 3 Super.
    "nemotron_h_moe-latent": Architecture(
        "nemotron_h_moe",
        nemotron_h_latent_weights,
        lambda shape: nemotron_h_moe_metadata(shape) | {"moe_latent_size": NEMOTRON_LATENT},
    ),
    # As Bamba's files are.
    "granitehybrid-rotated": Architecture(
        "granitehybrid",
        granitehybrid_weights,
        lambda shape: granitehybrid_metadata(shape, is_rotated=True),
    ),
    "granitehybrid-groups": Architecture(
        "granitehybrid",
        lambda shape: granitehybrid_weights(shape, groups=2),
        lambda shape: granitehybrid_metadata(shape, groups=2),
    ),
}
