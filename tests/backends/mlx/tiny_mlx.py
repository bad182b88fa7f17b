"""A random model of few blocks in MLX's own form, written without a converter."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import mlx.core as mx
import msgspec
from mlx.utils import tree_flatten

from backends.mlx.mlx_lm_internals import submodule
from converters.artifact import (
    ARTIFACT_FILE,
    ARTIFACT_FORMAT,
    CONVERTER_VERSION,
    MLX_CONFIG_FILE,
    MLX_WEIGHTS_FILE,
    Artifact,
    RopeTable,
    SpecialTokens,
)

EMBEDDING, HEADS, KV_HEADS, FEED_FORWARD = 64, 4, 2, 128
VOCABULARY, BLOCKS, CONTEXT = 320, 2, 512
END_ID = 7
LLAMA = {
    "model_type": "llama",
    "hidden_size": EMBEDDING,
    "num_hidden_layers": BLOCKS,
    "intermediate_size": FEED_FORWARD,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
}
# Windows of 32 positions in five of six blocks.
WINDOWS = LLAMA | {
    "model_type": "gemma3_text",
    "head_dim": 16,
    "num_hidden_layers": 6,
    "sliding_window": 32,
    "sliding_window_pattern": 6,
}
GEMMA2 = {
    "model_type": "gemma2",
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
# Three blocks with a state, then one that attends.
HYBRID = LLAMA | {
    "model_type": "qwen3_next",
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "num_experts": 0,
    "num_experts_per_tok": 1,
    "decoder_sparse_step": 1,
    "shared_expert_intermediate_size": 32,
    "mlp_only_layers": [0, 1, 2, 3],
    "moe_intermediate_size": 32,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": CONTEXT,
    "full_attention_interval": 4,
}


def write_tiny_mlx(
    folder: pathlib.Path,
    config: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    scale: float = 1.0,
    numbers: str = "float32",
    rope: RopeTable | None = None,
) -> None:
    """config.json, model.safetensors and artifact.json in `folder`, which is made.

    `scale` multiplies the head: 3e4 is finite as fp16, and gives logits that are not.
    """
    config = dict(config or LLAMA)
    folder.mkdir(parents=True, exist_ok=True)
    mx.random.seed(seed)
    module = submodule(f"models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    parameters: Any = tree_flatten(model.parameters())
    dtype = getattr(mx, numbers)
    weights = {name: _random(name, array.shape, scale).astype(dtype) for name, array in parameters}
    mx.save_safetensors(str(folder / MLX_WEIGHTS_FILE), weights)
    config["torch_dtype"] = numbers
    (folder / MLX_CONFIG_FILE).write_text(json.dumps(config))
    artifact = Artifact(
        format=ARTIFACT_FORMAT, converter=CONVERTER_VERSION, source="0" * 64, variant="mlx-f1",
        architecture=config["model_type"], block_count=config["num_hidden_layers"],
        embedding_length=EMBEDDING, heads=HEADS, kv_heads=(KV_HEADS,), head_size=16,
        vocabulary=VOCABULARY, context_length=CONTEXT, kv_bytes_per_token=0,
        special=SpecialTokens(end_ids=(END_ID,)), rope={"global": rope} if rope else {},
    )  # fmt: skip
    (folder / ARTIFACT_FILE).write_bytes(msgspec.json.encode(artifact))


def _random(name: str, shape: tuple[int, ...], scale: float) -> mx.array:
    """Norms of one, matrices that keep activations sane, a head that makes choices clear."""
    if len(shape) < 2:
        return mx.ones(shape)
    factor = 2.5 * scale if name.startswith("lm_head") else 1.5
    return mx.random.normal(shape) * (factor / shape[-1] ** 0.5)
