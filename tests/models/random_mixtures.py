"""Test architectures with experts. Their routers are spread, so that rounding flips no choice."""

from collections.abc import Iterator

from tests.models.random_decoders import (
    interleaved_sections,
    qwen3_weights,
)
from tests.models.random_parts import (
    Architecture,
    Shape,
    Value,
    Weight,
    attention,
    bias,
    embedding_and_head,
    gated_feed_forward,
    head_norms,
    matrix,
    norm,
)

EXPERTS, USED = 8, 2
ROUTER_GAIN = 6.0


def router(prefix: str, shape: Shape) -> Weight:
    wide = matrix(f"{prefix}ffn_gate_inp.weight", EXPERTS, shape.embedding, ROUTER_GAIN)
    return Weight(wide.name, wide.shape, wide.std, is_matrix=False)


def experts(prefix: str, shape: Shape, *, has_bias: bool = False) -> Iterator[Weight]:
    """The router and three stacks of matrices, half as wide as a dense network."""
    inner, width = shape.feed_forward // 2, shape.embedding
    yield router(prefix, shape)
    for name, rows, columns in (
        ("gate", inner, width),
        ("up", inner, width),
        ("down", width, inner),
    ):
        stem = f"{prefix}ffn_{name}_exps"
        yield Weight(f"{stem}.weight", (EXPERTS, rows, columns), columns**-0.5)
        if has_bias:
            yield Weight(f"{stem}.bias", (EXPERTS, rows), 0.3, is_matrix=False)
    if has_bias:
        yield bias(f"{prefix}ffn_gate_inp.bias", EXPERTS)


def shared_expert(prefix: str, shape: Shape) -> Iterator[Weight]:
    inner = shape.feed_forward // 2
    yield matrix(f"{prefix}ffn_gate_shexp.weight", inner, shape.embedding)
    yield matrix(f"{prefix}ffn_up_shexp.weight", inner, shape.embedding)
    yield matrix(f"{prefix}ffn_down_shexp.weight", shape.embedding, inner)


def mixture_weights(shape: Shape, *, has_bias: bool = False) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        yield from attention(prefix, shape, has_bias=has_bias)
        yield norm(f"{prefix}ffn_norm.weight", shape.embedding)
        yield from experts(prefix, shape)


def qwen2moe_weights(shape: Shape) -> Iterator[Weight]:
    yield from mixture_weights(shape, has_bias=True)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield from shared_expert(prefix, shape)
        gate = (shape.embedding,)
        yield Weight(f"{prefix}ffn_gate_inp_shexp.weight", gate, 0.1, is_matrix=False)


def qwen3moe_weights(shape: Shape) -> Iterator[Weight]:
    yield from (weight for weight in qwen3_weights(shape) if ".ffn_" not in weight.name)
    for index in range(shape.blocks):
        yield norm(f"blk.{index}.ffn_norm.weight", shape.embedding)
        yield from experts(f"blk.{index}.", shape)


def fused(weights: Iterator[Weight]) -> Iterator[Weight]:
    """Gates and ups of the experts in one tensor, as newer converters of files write them."""
    for weight in weights:
        if weight.name.endswith("ffn_gate_exps.weight"):
            count, rows, columns = weight.shape
            name = weight.name.replace("ffn_gate_exps", "ffn_gate_up_exps")
            yield Weight(name, (count, 2 * rows, columns), weight.std)
        elif not weight.name.endswith("ffn_up_exps.weight"):
            yield weight


def granitemoe_weights(shape: Shape) -> Iterator[Weight]:
    yield from mixture_weights(shape)
    for index in range(shape.blocks):
        yield from shared_expert(f"blk.{index}.", shape)


def gpt_oss_weights(shape: Shape) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        yield from attention(prefix, shape, has_bias=True, has_output_bias=True)
        yield Weight(f"{prefix}attn_sinks.weight", (shape.heads,), 1.0, is_matrix=False)
        yield norm(f"{prefix}post_attention_norm.weight", shape.embedding)
        yield from experts(prefix, shape, has_bias=True)


def expert_metadata(shape: Shape) -> dict[str, Value]:
    inner = shape.feed_forward // 2
    return {
        "expert_count": EXPERTS,
        "expert_used_count": USED,
        "expert_feed_forward_length": inner,
        "expert_shared_feed_forward_length": inner,
    }


DELTA_KEY_HEADS, DELTA_VALUE_HEADS, DELTA_SIZE, DELTA_KERNEL = 2, 4, 32, 4


def delta_net(prefix: str, shape: Shape) -> Iterator[Weight]:
    """Decays from a tenth to nearly everything, so that a prompt's beginning still shows."""
    keys, values = DELTA_KEY_HEADS * DELTA_SIZE, DELTA_VALUE_HEADS * DELTA_SIZE
    channels, width, heads = 2 * keys + values, shape.embedding, DELTA_VALUE_HEADS
    yield matrix(f"{prefix}attn_qkv.weight", channels, width)
    yield matrix(f"{prefix}attn_gate.weight", values, width)
    kernel = (channels, DELTA_KERNEL)
    yield Weight(f"{prefix}ssm_conv1d.weight", kernel, 0.7, is_matrix=False)
    decays = tuple(-0.02 * 4.0**head for head in range(heads))
    yield Weight(f"{prefix}ssm_a", (heads,), 0.0, is_matrix=False, values=decays)
    yield bias(f"{prefix}ssm_dt.bias", heads)
    yield matrix(f"{prefix}ssm_alpha.weight", heads, width)
    yield matrix(f"{prefix}ssm_beta.weight", heads, width)
    yield norm(f"{prefix}ssm_norm.weight", DELTA_SIZE)
    yield matrix(f"{prefix}ssm_out.weight", width, values)


def gated_attention(prefix: str, shape: Shape) -> Iterator[Weight]:
    for weight in attention(prefix, shape):
        if weight.name.endswith("attn_q.weight"):
            yield matrix(weight.name, 2 * weight.shape[0], shape.embedding, 1.3)
        else:
            yield weight
    yield from head_norms(prefix, shape.head_size, shape.head_size)


def qwen35_weights(shape: Shape, *, is_mixture: bool = False) -> Iterator[Weight]:
    """Every other block attends."""
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        yield from (gated_attention if index % 2 else delta_net)(prefix, shape)
        yield norm(f"{prefix}post_attention_norm.weight", shape.embedding)
        if not is_mixture:
            yield from gated_feed_forward(prefix, shape)
            continue
        yield from experts(prefix, shape)
        yield from shared_expert(prefix, shape)
        gate = (shape.embedding,)
        yield Weight(f"{prefix}ffn_gate_inp_shexp.weight", gate, 0.1, is_matrix=False)


def qwen35moe_weights(shape: Shape) -> Iterator[Weight]:
    yield from qwen35_weights(shape, is_mixture=True)


def qwen3next_weights(shape: Shape, *, is_fused: bool = False) -> Iterator[Weight]:
    """Beta and alpha in one matrix; in early files q, k, v and the gate, too."""
    width, values = shape.embedding, DELTA_VALUE_HEADS * DELTA_SIZE
    for weight in qwen35moe_weights(shape):
        name = weight.name.split(".", 2)[-1]
        stem = weight.name.removesuffix(name)
        if name == "ssm_alpha.weight":
            yield matrix(f"{stem}ssm_ba.weight", 2 * DELTA_VALUE_HEADS, width)
        elif is_fused and name == "attn_gate.weight":
            rows = 2 * DELTA_KEY_HEADS * DELTA_SIZE + 2 * values
            yield matrix(f"{stem}ssm_in.weight", rows, width)
        elif name != "ssm_beta.weight" and not (is_fused and name == "attn_qkv.weight"):
            yield weight


def qwen35_metadata(shape: Shape) -> dict[str, Value]:
    pairs = shape.head_size // 4
    return {
        "full_attention_interval": 2,
        "rope.dimension_count": 2 * pairs,
        "rope.dimension_sections": [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3, 0],
        "ssm.conv_kernel": DELTA_KERNEL,
        "ssm.inner_size": DELTA_VALUE_HEADS * DELTA_SIZE,
        "ssm.state_size": DELTA_SIZE,
        "ssm.time_step_rank": DELTA_VALUE_HEADS,
        "ssm.group_count": DELTA_KEY_HEADS,
    }


def granitemoe_metadata(shape: Shape) -> dict[str, Value]:
    return {
        **expert_metadata(shape),
        "feed_forward_length": shape.feed_forward // 2,
        "attention.scale": 0.08,
        "embedding_scale": 12.0,
        "residual_scale": 0.22,
        "logit_scale": 1.2,
    }


MIXTURES: dict[str, Architecture] = {
    # llama.cpp takes the width of the experts from the dense one here.
    "mixtral": Architecture(
        "llama",
        mixture_weights,
        lambda shape: {
            **expert_metadata(shape),
            "feed_forward_length": shape.feed_forward // 2,
        },
    ),
    "qwen2moe": Architecture("qwen2moe", qwen2moe_weights, expert_metadata),
    "qwen3moe": Architecture("qwen3moe", qwen3moe_weights, expert_metadata, head_size=64),
    "qwen3vlmoe": Architecture(
        "qwen3vlmoe",
        qwen3moe_weights,
        lambda shape: expert_metadata(shape) | interleaved_sections(shape),
        head_size=64,
    ),
    "granitemoe": Architecture("granitemoe", granitemoe_weights, granitemoe_metadata),
    "granitemoe-unshared": Architecture(
        "granitemoe",
        mixture_weights,
        lambda shape: {**granitemoe_metadata(shape), "expert_shared_feed_forward_length": 0},
    ),
    "gpt-oss": Architecture(
        "gpt-oss",
        gpt_oss_weights,
        lambda shape: {
            **expert_metadata(shape),
            "attention.sliding_window": 16,
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
    ),
    "qwen35": Architecture("qwen35", qwen35_weights, qwen35_metadata, is_tied=True),
    "qwen3next": Architecture(
        "qwen3next",
        qwen3next_weights,
        lambda shape: expert_metadata(shape) | qwen35_metadata(shape),
    ),
    "qwen3next-early": Architecture(
        "qwen3next",
        lambda shape: qwen3next_weights(shape, is_fused=True),
        lambda shape: expert_metadata(shape) | qwen35_metadata(shape),
    ),
    "qwen35moe-fused": Architecture(
        "qwen35moe",
        lambda shape: fused(qwen35moe_weights(shape)),
        lambda shape: expert_metadata(shape) | qwen35_metadata(shape),
    ),
    "qwen35moe": Architecture(
        "qwen35moe",
        qwen35moe_weights,
        lambda shape: expert_metadata(shape) | qwen35_metadata(shape),
    ),
}
