"""Test architectures whose experts are routed as by DeepSeek, or lie between other kinds of blocks."""

import dataclasses
import math
from collections.abc import Iterator

from tests.models.random_decoders import (
    lfm2_metadata,
    lfm2_weights,
)
from tests.models.random_mixtures import (
    EXPERTS,
    expert_metadata,
    experts,
    mixture_weights,
    qwen3moe_weights,
    shared_expert,
)
from tests.models.random_parts import (
    Architecture,
    Shape,
    Value,
    Weight,
    attention,
    bias,
    embedding_and_head,
    fused_attention,
    gated_feed_forward,
    head_norms,
    matrix,
    norm,
)

LATENT, NOPE, ROPE, VALUE, RANK = 64, 32, 32, 32, 64


def latent_attention(prefix: str, shape: Shape, *, is_joint: bool) -> Iterator[Weight]:
    width, heads = shape.embedding, shape.heads
    yield matrix(f"{prefix}attn_kv_a_mqa.weight", LATENT + ROPE, width)
    yield norm(f"{prefix}attn_kv_a_norm.weight", LATENT)
    if is_joint:
        yield matrix(f"{prefix}attn_kv_b.weight", heads * (NOPE + VALUE), LATENT)
    else:
        yield Weight(f"{prefix}attn_k_b.weight", (heads, LATENT, NOPE), LATENT**-0.5)
        yield Weight(f"{prefix}attn_v_b.weight", (heads, VALUE, LATENT), LATENT**-0.5)
    yield matrix(f"{prefix}attn_output.weight", width, heads * VALUE)


def low_rank_query(prefix: str, shape: Shape) -> Iterator[Weight]:
    yield matrix(f"{prefix}attn_q_a.weight", RANK, shape.embedding)
    yield norm(f"{prefix}attn_q_a_norm.weight", RANK)
    yield matrix(f"{prefix}attn_q_b.weight", shape.heads * (NOPE + ROPE), RANK, 1.3)


def deepseek2_weights(
    shape: Shape, *, is_lite: bool = False, is_joint: bool = False
) -> Iterator[Weight]:
    """The first block is dense. The lite model has one matrix for its queries."""
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        if is_lite:
            rows = shape.heads * (NOPE + ROPE)
            yield matrix(f"{prefix}attn_q.weight", rows, shape.embedding, 1.3)
        else:
            yield from low_rank_query(prefix, shape)
        yield from latent_attention(prefix, shape, is_joint=is_joint)
        yield norm(f"{prefix}ffn_norm.weight", shape.embedding)
        if index == 0:
            yield from gated_feed_forward(prefix, shape)
        else:
            yield from experts(prefix, shape)
            yield from shared_expert(prefix, shape)


def choice_bias(prefix: str) -> Weight:
    return bias(f"{prefix}exp_probs_b.bias", EXPERTS, 0.2)


def routed_weights(
    shape: Shape,
    *,
    has_biases: bool = False,
    has_norms: bool = True,
    has_choice_bias: bool = True,
    is_fused: bool = False,
    ffn_norm: str = "ffn_norm",
) -> Iterator[Weight]:
    """The first block is dense, the others have experts and a shared one."""
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        if is_fused:
            yield from fused_attention(prefix, shape)
        else:
            yield from attention(prefix, shape, has_bias=has_biases)
        if has_norms:
            yield from head_norms(prefix, shape.head_size, shape.head_size)
        yield norm(f"{prefix}{ffn_norm}.weight", shape.embedding)
        if index == 0:
            yield from gated_feed_forward(prefix, shape)
            continue
        yield from experts(prefix, shape)
        yield from shared_expert(prefix, shape)
        if has_choice_bias:
            yield choice_bias(prefix)


def glm4moe_weights(shape: Shape) -> Iterator[Weight]:
    yield from routed_weights(shape, has_biases=True, ffn_norm="post_attention_norm")


def ungrouped(shape: Shape) -> Shape:
    """Keys and values for every head: some models of llama.cpp know no others."""
    return dataclasses.replace(shape, kv_heads=shape.heads)


def bailing_weights(shape: Shape) -> Iterator[Weight]:
    yield from routed_weights(shape, is_fused=True)


def ernie_weights(shape: Shape, *, has_choice_bias: bool = True) -> Iterator[Weight]:
    yield from routed_weights(shape, has_norms=False, has_choice_bias=has_choice_bias)


def hunyuan_moe_weights(shape: Shape) -> Iterator[Weight]:
    yield from qwen3moe_weights(shape)
    for index in range(shape.blocks):
        yield from shared_expert(f"blk.{index}.", shape)


def olmoe_weights(shape: Shape) -> Iterator[Weight]:
    yield from mixture_weights(shape)
    for index in range(shape.blocks):
        yield from head_norms(f"blk.{index}.", shape.embedding, shape.embedding)


def afmoe_weights(shape: Shape) -> Iterator[Weight]:
    """Embeddings are multiplied by √E."""
    for weight in routed_weights(shape):
        is_first = weight.name == "token_embd.weight"
        std = weight.std / math.sqrt(shape.embedding) if is_first else weight.std
        yield dataclasses.replace(weight, std=std)
    rows = shape.heads * shape.head_size
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield matrix(f"{prefix}attn_gate.weight", rows, shape.embedding)
        yield norm(f"{prefix}post_attention_norm.weight", shape.embedding)
        yield norm(f"{prefix}post_ffw_norm.weight", shape.embedding)


def lfm2moe_weights(shape: Shape) -> Iterator[Weight]:
    """The first block is dense."""
    for weight in lfm2_weights(shape):
        if ".ffn_" not in weight.name or weight.name.startswith("blk.0."):
            yield weight
    for index in range(1, shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}ffn_norm.weight", shape.embedding)
        yield from experts(prefix, shape)
        yield choice_bias(prefix)


def lite_weights(shape: Shape) -> Iterator[Weight]:
    yield from deepseek2_weights(shape, is_lite=True)


def joint_weights(shape: Shape) -> Iterator[Weight]:
    yield from deepseek2_weights(shape, is_joint=True)


def sigmoid_weights(shape: Shape) -> Iterator[Weight]:
    """Routed as DeepSeek V3 is, without its groups."""
    yield from deepseek2_weights(shape)
    for index in range(1, shape.blocks):
        yield choice_bias(f"blk.{index}.")


def routed_metadata(shape: Shape) -> dict[str, Value]:
    return {
        **expert_metadata(shape),
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 1.5,
    }


GROUPS: dict[str, Value] = {"expert_group_count": 4, "expert_group_used_count": 2}


def half_rotated(shape: Shape) -> dict[str, Value]:
    return {"rope.dimension_count": shape.head_size // 2}


def ernie_metadata(shape: Shape) -> dict[str, Value]:
    return {
        **expert_metadata(shape),
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "interleave_moe_layer_step": 1,
    }


def deepseek2_metadata(shape: Shape, *, is_joint: bool = False) -> dict[str, Value]:
    sizes: dict[str, Value] = {
        "attention.head_count_kv": 1,
        "attention.key_length": LATENT + ROPE,
        "attention.value_length": LATENT,
        "attention.key_length_mla": NOPE + ROPE,
        "attention.value_length_mla": VALUE,
    }
    if is_joint:
        sizes = {
            "attention.head_count_kv": shape.heads,
            "attention.key_length": NOPE + ROPE,
            "attention.value_length": VALUE,
        }
    return {
        **expert_metadata(shape),
        **sizes,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.kv_lora_rank": LATENT,
        "attention.q_lora_rank": RANK,
        "rope.dimension_count": ROPE,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.5,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 40.0,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.yarn_log_multiplier": 0.0707,
    }


ROUTED: dict[str, Architecture] = {
    "deepseek2": Architecture("deepseek2", deepseek2_weights, deepseek2_metadata),
    # llama.cpp knows the lite model by its 26 or 27 blocks.
    "deepseek2-lite": Architecture("deepseek2", lite_weights, deepseek2_metadata),
    "deepseek2-joint": Architecture(
        "deepseek2",
        joint_weights,
        lambda shape: deepseek2_metadata(shape, is_joint=True),
    ),
    "deepseek2-sigmoid": Architecture(
        "deepseek2",
        sigmoid_weights,
        lambda shape: {
            **deepseek2_metadata(shape),
            "expert_gating_func": 2,
            "expert_weights_norm": True,
        },
    ),
    "deepseek2-groups": Architecture(
        "deepseek2",
        sigmoid_weights,
        lambda shape: {
            **deepseek2_metadata(shape),
            **GROUPS,
            "expert_group_used_count": 1,
            "expert_gating_func": 2,
            "expert_weights_norm": True,
        },
    ),
    "glm4moe": Architecture(
        "glm4moe", glm4moe_weights, lambda shape: routed_metadata(shape) | half_rotated(shape)
    ),
    "dots1": Architecture(
        "dots1",
        lambda shape: routed_weights(ungrouped(shape)),
        lambda shape: {
            **routed_metadata(shape),
            "attention.head_count_kv": shape.heads,
            "expert_weights_norm": False,
        },
    ),
    "bailingmoe2": Architecture(
        "bailingmoe2",
        bailing_weights,
        lambda shape: routed_metadata(shape) | half_rotated(shape) | GROUPS,
    ),
    "olmoe": Architecture(
        "olmoe",
        lambda shape: olmoe_weights(ungrouped(shape)),
        lambda shape: {
            **expert_metadata(shape),
            "feed_forward_length": shape.feed_forward // 2,
            "attention.head_count_kv": shape.heads,
        },
    ),
    "hunyuan-moe": Architecture(
        "hunyuan-moe",
        hunyuan_moe_weights,
        lambda shape: {**expert_metadata(shape), "feed_forward_length": shape.feed_forward // 2},
    ),
    "afmoe": Architecture(
        "afmoe",
        afmoe_weights,
        lambda shape: {**routed_metadata(shape), "attention.sliding_window": 16},
    ),
    "ernie4_5-moe": Architecture("ernie4_5-moe", ernie_weights, ernie_metadata),
    "ernie4_5-moe-unbiased": Architecture(
        "ernie4_5-moe",
        lambda shape: ernie_weights(shape, has_choice_bias=False),
        ernie_metadata,
    ),
    "lfm2moe": Architecture(
        "lfm2moe",
        lfm2moe_weights,
        lambda shape: {
            **lfm2_metadata(shape),
            **expert_metadata(shape),
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
        },
        is_tied=True,
    ),
}
