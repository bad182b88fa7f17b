"""Test architectures that decode, without experts; see `random_architectures` for what an entry is."""

import dataclasses
from collections.abc import Iterator

from tests.models.random_parts import (
    Architecture,
    Shape,
    Value,
    Weight,
    attention,
    bias,
    embedding_and_head,
    fused_attention,
    fused_feed_forward,
    gated_feed_forward,
    head_norms,
    matrix,
    norm,
    plain_blocks,
)


def llama_weights(shape: Shape) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    yield from plain_blocks(shape)


def growing_factors(name: str, shape: Shape, last: float) -> Weight:
    """Frequency factors from 1 to `last` over the rotary pairs."""
    pairs = shape.head_size // 2
    step = (last - 1.0) / max(1, pairs - 1)
    factors = tuple(1.0 + step * pair for pair in range(pairs))
    return Weight(name, (pairs,), 0.0, is_matrix=False, values=factors)


def llama3_weights(shape: Shape) -> Iterator[Weight]:
    yield from llama_weights(shape)
    yield growing_factors("rope_freqs.weight", shape, 8.0)


def qwen2_weights(shape: Shape) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    yield from plain_blocks(shape, has_bias=True)


def qwen3_weights(shape: Shape) -> Iterator[Weight]:
    yield from llama_weights(shape)
    for index in range(shape.blocks):
        yield from head_norms(f"blk.{index}.", shape.head_size, shape.head_size)


def sandwich_weights(
    shape: Shape, *, has_head_norms: bool = False, has_pre_norms: bool = True
) -> Iterator[Weight]:
    """Norms after both branches."""
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        if has_pre_norms:
            yield norm(f"{prefix}attn_norm.weight", shape.embedding)
            yield norm(f"{prefix}ffn_norm.weight", shape.embedding)
        yield from attention(prefix, shape)
        if has_head_norms:
            yield from head_norms(prefix, shape.head_size, shape.head_size)
        yield norm(f"{prefix}post_attention_norm.weight", shape.embedding)
        yield from gated_feed_forward(prefix, shape)
        yield norm(f"{prefix}post_ffw_norm.weight", shape.embedding)


def gemma3_weights(shape: Shape) -> Iterator[Weight]:
    yield from sandwich_weights(shape, has_head_norms=True)


def olmo2_weights(shape: Shape) -> Iterator[Weight]:
    yield from sandwich_weights(shape, has_pre_norms=False)
    for index in range(shape.blocks):
        kv_rows = shape.kv_heads * shape.head_size
        yield from head_norms(f"blk.{index}.", shape.heads * shape.head_size, kv_rows)


def phi3_weights(shape: Shape) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        yield from fused_attention(prefix, shape)
        yield norm(f"{prefix}ffn_norm.weight", shape.embedding)
        yield from fused_feed_forward(prefix, shape)


def longrope_weights(shape: Shape) -> Iterator[Weight]:
    yield from phi3_weights(shape)
    yield growing_factors("rope_factors_short.weight", shape, 2.0)
    yield growing_factors("rope_factors_long.weight", shape, 40.0)


def chatglm_weights(shape: Shape) -> Iterator[Weight]:
    yield from phi3_weights(shape)
    rows = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    for index in range(shape.blocks):
        yield bias(f"blk.{index}.attn_qkv.bias", rows)


def glm4_weights(shape: Shape) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            yield norm(f"{prefix}{name}.weight", shape.embedding)
        yield from attention(prefix, shape, has_bias=True)
        yield from fused_feed_forward(prefix, shape)


def command_r_weights(shape: Shape) -> Iterator[Weight]:
    yield from embedding_and_head(shape)
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", shape.embedding)
        yield from attention(prefix, shape)
        yield from gated_feed_forward(prefix, shape)


def seed_oss_weights(shape: Shape) -> Iterator[Weight]:
    for weight in qwen2_weights(shape):
        name = weight.name.replace("ffn_norm", "post_attention_norm")
        yield dataclasses.replace(weight, name=name)


def exaone4_weights(shape: Shape) -> Iterator[Weight]:
    yield from sandwich_weights(shape, has_head_norms=True, has_pre_norms=False)
    yield growing_factors("rope_freqs.weight", shape, 8.0)


LFM2_KERNEL = 3


def lfm2_convolves(index: int) -> bool:
    return index % 2 == 0


def lfm2_weights(shape: Shape) -> Iterator[Weight]:
    """Every even block convolves. The final norm has the name of another model's first."""
    for weight in embedding_and_head(shape):
        is_norm = weight.name == "output_norm.weight"
        yield Weight("token_embd_norm.weight", weight.shape, weight.std, weight.mean,
                     is_matrix=False) if is_norm else weight  # fmt: skip
    width = shape.embedding
    for index in range(shape.blocks):
        prefix = f"blk.{index}."
        yield norm(f"{prefix}attn_norm.weight", width)
        if lfm2_convolves(index):
            yield matrix(f"{prefix}shortconv.in_proj.weight", 3 * width, width)
            kernel = (width, LFM2_KERNEL)
            yield Weight(f"{prefix}shortconv.conv.weight", kernel, 0.8, is_matrix=False)
            yield matrix(f"{prefix}shortconv.out_proj.weight", width, width)
        else:
            yield from attention(prefix, shape)
            yield from head_norms(prefix, shape.head_size, shape.head_size)
        yield norm(f"{prefix}ffn_norm.weight", width)
        yield from gated_feed_forward(prefix, shape)


def lfm2_metadata(shape: Shape) -> dict[str, Value]:
    return {
        "shortconv.l_cache": LFM2_KERNEL,
        "attention.head_count_kv": [
            0 if lfm2_convolves(index) else shape.kv_heads for index in range(shape.blocks)
        ],
    }


def sections(shape: Shape) -> dict[str, Value]:
    """Time, height and width, as vision models cut what they rotate."""
    pairs = shape.head_size // 2
    time, height = pairs // 4, pairs * 3 // 8
    return {"rope.dimension_sections": [time, height, pairs - time - height, 0]}


def interleaved_sections(shape: Shape) -> dict[str, Value]:
    """Each third pair; every one is in a section, or else llama.cpp would leave it unrotated."""
    pairs = shape.head_size // 2
    return {"rope.dimension_sections": [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0]}


def halves_of_heads(shape: Shape) -> dict[str, Value]:
    """Rotated by sections, as in the text side of GLM 4 V."""
    half = shape.head_size // 2
    return {"rope.dimension_count": half, **sections(dataclasses.replace(shape, head_size=half))}


DECODERS: dict[str, Architecture] = {
    "llama": Architecture("llama", llama_weights),
    "llama3": Architecture(
        "llama", llama3_weights, lambda _shape: {"rope.freq_base": 500000.0}, is_tied=True
    ),
    # Mistral files carry the llama name and a sliding window that llama.cpp ignores.
    "mistral": Architecture(
        "llama",
        llama_weights,
        lambda _shape: {"rope.freq_base": 1000000.0, "attention.sliding_window": 4096},
        head_size=32,
    ),
    # H2O's Danube has heads of 120.
    "danube": Architecture("llama", llama_weights, head_size=40),
    "qwen2": Architecture("qwen2", qwen2_weights, lambda _shape: {"rope.freq_base": 1000000.0}),
    "qwen2-tied": Architecture(
        "qwen2", qwen2_weights, lambda _shape: {"rope.freq_base": 1000000.0}, is_tied=True
    ),
    "qwen3": Architecture(
        "qwen3",
        qwen3_weights,
        lambda _shape: {"rope.freq_base": 1000000.0, "attention.layer_norm_rms_epsilon": 1e-6},
        is_tied=True,
        head_size=96,
    ),
    # llama.cpp norms by this epsilon here, whatever the file says; all published ones say it.
    "qwen2vl": Architecture(
        "qwen2vl",
        qwen2_weights,
        lambda shape: {**sections(shape), "attention.layer_norm_rms_epsilon": 1e-6},
    ),
    "qwen3vl": Architecture("qwen3vl", qwen3_weights, interleaved_sections, is_tied=True),
    "qwen3vl-deepstack": Architecture(
        "qwen3vl",
        qwen3_weights,
        lambda shape: {**interleaved_sections(shape), "n_deepstack_layers": 1},
        is_tied=True,
    ),
    "gemma": Architecture("gemma", llama_weights, is_tied=True),
    "gemma2": Architecture(
        "gemma2",
        sandwich_weights,
        lambda _shape: {
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 6.0,
            "attention.sliding_window": 16,
        },
        is_tied=True,
    ),
    "gemma3": Architecture(
        "gemma3",
        gemma3_weights,
        lambda _shape: {
            "rope.freq_base": 1000000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": 2,
        },
        is_tied=True,
    ),
    "gemma3-full": Architecture("gemma3", gemma3_weights, is_tied=True),
    # Not called phi3: llama.cpp expects that family's tokens behind such a name.
    "phi4": Architecture("phi3", phi3_weights),
    # Short factors in a context of 512, long ones in the same file at an original context of 64.
    "phi4-short": Architecture(
        "phi3",
        longrope_weights,
        lambda _shape: {
            "rope.scaling.original_context_length": 1024,
            "rope.scaling.attn_factor": 1.19,
        },
    ),
    "phi4-long": Architecture(
        "phi3",
        longrope_weights,
        lambda _shape: {
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 1.19,
        },
    ),
    # Phi 4 mini rotates three quarters of each head.
    "phi4-mini": Architecture(
        "phi3", phi3_weights, lambda shape: {"rope.dimension_count": shape.head_size * 3 // 4}
    ),
    "granite": Architecture(
        "granite",
        llama_weights,
        lambda _shape: {
            "attention.scale": 0.08,
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 1.2,
        },
    ),
    "smollm3": Architecture("smollm3", llama_weights, is_tied=True),
    "olmo2": Architecture("olmo2", olmo2_weights),
    "olmo3": Architecture(
        "olmo2",
        olmo2_weights,
        lambda _shape: {
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": [True, False],
            "rope.freq_base": 500000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 256,
        },
    ),
    "chatglm": Architecture(
        "chatglm", chatglm_weights, lambda shape: {"rope.dimension_count": shape.head_size // 2}
    ),
    "glm4": Architecture(
        "glm4", glm4_weights, lambda shape: {"rope.dimension_count": shape.head_size // 2}
    ),
    "glm4-sections": Architecture("glm4", glm4_weights, halves_of_heads),
    "command-r": Architecture(
        "command-r",
        command_r_weights,
        lambda _shape: {"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.8},
        is_tied=True,
    ),
    "cohere2": Architecture(
        "cohere2",
        command_r_weights,
        lambda _shape: {
            "attention.layer_norm_epsilon": 1e-5,
            "logit_scale": 0.8,
            "attention.sliding_window": 16,
            "attention.sliding_window_pattern": 2,
        },
        is_tied=True,
    ),
    "ernie4_5": Architecture("ernie4_5", llama_weights, is_tied=True),
    "hunyuan-dense": Architecture("hunyuan-dense", qwen3_weights, is_tied=True),
    "exaone4": Architecture("exaone4", exaone4_weights, is_tied=True),
    "internlm2": Architecture("internlm2", llama_weights),
    "minicpm": Architecture(
        "minicpm",
        llama_weights,
        lambda _shape: {"embedding_scale": 6.0, "residual_scale": 0.7, "logit_scale": 1.3},
        is_tied=True,
    ),
    "seed_oss": Architecture("seed_oss", seed_oss_weights, head_size=96),
    "exaone": Architecture("exaone", llama3_weights),
    "mistral3": Architecture(
        "mistral3",
        llama_weights,
        lambda _shape: {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 16.0,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.3,
        },
    ),
    "lfm2": Architecture(
        "lfm2",
        lfm2_weights,
        lfm2_metadata,
        is_tied=True,
    ),
}
