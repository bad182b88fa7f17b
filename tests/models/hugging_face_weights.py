"""Original names, shapes and spreads of the weights of `hugging_face_families`, by kind of block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
# (name, shape, standard deviation, mean)
Weight = tuple[str, tuple[int, ...], float, float]


def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> Weight:
    return (f"{name}.weight", (rows, columns), gain / math.sqrt(columns), 0.0)


def norm(name: str, size: int, mean: float = 1.0) -> Weight:
    return (f"{name}.weight", (size,), 0.3, mean)


def bias(name: str, size: int, std: float = 0.3) -> Weight:
    return (f"{name}.bias", (size,), std, 0.0)


def ends(config: Json, prefix: str = "model.", mean: float = 1.0) -> Iterator[Weight]:
    width, spread = config["hidden_size"], 2.5 / math.sqrt(config["hidden_size"])
    is_tied = config["tie_word_embeddings"]
    size = (config["vocab_size"], width)
    yield (f"{prefix}embed_tokens.weight", size, spread if is_tied else 1.0, 0.0)
    yield (f"{prefix}norm.weight", (width,), *((1.0, mean - 1.0) if is_tied else (0.3, mean)))
    if not is_tied:
        yield ("lm_head.weight", size, spread, 0.0)


def attention(prefix: str, config: Json, *, has_bias: bool = False) -> Iterator[Weight]:
    width = config["hidden_size"]
    size = config.get("head_dim") or width // config["num_attention_heads"]
    rows = {
        "q": config["num_attention_heads"] * size,
        "k": config["num_key_value_heads"] * size,
        "v": config["num_key_value_heads"] * size,
    }
    for part, count in rows.items():
        yield matrix(f"{prefix}.{part}_proj", count, width, 1.0 if part == "v" else 1.3)
        if has_bias:
            yield bias(f"{prefix}.{part}_proj", count)
    yield matrix(f"{prefix}.o_proj", width, rows["q"])


def gated(prefix: str, width: int, inner: int) -> Iterator[Weight]:
    yield matrix(f"{prefix}.gate_proj", inner, width)
    yield matrix(f"{prefix}.up_proj", inner, width)
    yield matrix(f"{prefix}.down_proj", width, inner)


def plain(
    config: Json, *, has_bias: bool = False, has_head_norms: bool = False
) -> Iterator[Weight]:
    yield from ends(config)
    width = config["hidden_size"]
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        yield norm(f"{prefix}.input_layernorm", width)
        yield norm(f"{prefix}.post_attention_layernorm", width)
        yield from attention(f"{prefix}.self_attn", config, has_bias=has_bias)
        if has_head_norms:
            yield norm(f"{prefix}.self_attn.q_norm", config["head_dim"])
            yield norm(f"{prefix}.self_attn.k_norm", config["head_dim"])
        yield from gated(f"{prefix}.mlp", width, config["intermediate_size"])


def mixture(config: Json) -> Iterator[Weight]:
    inner = config["intermediate_size"]
    for weight in plain(config):
        if ".mlp." not in weight[0]:
            yield weight
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}.block_sparse_moe"
        yield matrix(f"{prefix}.gate", config["num_local_experts"], config["hidden_size"])
        for expert in range(config["num_local_experts"]):
            yield matrix(f"{prefix}.experts.{expert}.w1", inner, config["hidden_size"])
            yield matrix(f"{prefix}.experts.{expert}.w2", config["hidden_size"], inner)
            yield matrix(f"{prefix}.experts.{expert}.w3", inner, config["hidden_size"])


def qwen3_mixture(config: Json) -> Iterator[Weight]:
    inner, width = config["moe_intermediate_size"], config["hidden_size"]
    for weight in plain(config, has_head_norms=True):
        if ".mlp." not in weight[0]:
            yield weight
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}.mlp"
        yield matrix(f"{prefix}.gate", config["num_experts"], width)
        for expert in range(config["num_experts"]):
            yield from gated(f"{prefix}.experts.{expert}", width, inner)


def gemma(
    config: Json, *, is_sandwich: bool = True, has_head_norms: bool = False, prefix: str = "model."
) -> Iterator[Weight]:
    """Norms are stored without their 1."""
    yield from ends(config, prefix, mean=0.0)
    width = config["hidden_size"]
    names = ["input_layernorm", "post_attention_layernorm"]
    if is_sandwich:
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for index in range(config["num_hidden_layers"]):
        stem = f"{prefix}layers.{index}"
        for name in names:
            yield norm(f"{stem}.{name}", width, 0.0)
        yield from attention(f"{stem}.self_attn", config)
        if has_head_norms:
            yield norm(f"{stem}.self_attn.q_norm", config["head_dim"], 0.0)
            yield norm(f"{stem}.self_attn.k_norm", config["head_dim"], 0.0)
        yield from gated(f"{stem}.mlp", width, config["intermediate_size"])


def phi3(config: Json) -> Iterator[Weight]:
    yield from ends(config)
    width, inner = config["hidden_size"], config["intermediate_size"]
    size = width // config["num_attention_heads"]
    rows = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * size
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        yield norm(f"{prefix}.input_layernorm", width)
        yield norm(f"{prefix}.post_attention_layernorm", width)
        yield matrix(f"{prefix}.self_attn.qkv_proj", rows, width, 1.2)
        yield matrix(f"{prefix}.self_attn.o_proj", width, width)
        yield matrix(f"{prefix}.mlp.gate_up_proj", 2 * inner, width)
        yield matrix(f"{prefix}.mlp.down_proj", width, inner)


def layer_norm(name: str, size: int) -> Iterator[Weight]:
    yield norm(name, size)
    yield bias(name, size, 0.1)


def dense(name: str, rows: int, columns: int) -> Iterator[Weight]:
    yield matrix(name, rows, columns)
    yield bias(name, rows)


def bert(config: Json, *, prefix: str = "") -> Iterator[Weight]:
    width, inner = config["hidden_size"], config["intermediate_size"]
    stem = f"{prefix}embeddings"
    yield (f"{stem}.word_embeddings.weight", (config["vocab_size"], width), 1.0, 0.0)
    yield (
        f"{stem}.position_embeddings.weight",
        (config["max_position_embeddings"], width),
        0.5,
        0.0,
    )
    yield (f"{stem}.token_type_embeddings.weight", (config["type_vocab_size"], width), 0.3, 0.0)
    yield from layer_norm(f"{stem}.LayerNorm", width)
    for index in range(config["num_hidden_layers"]):
        stem = f"{prefix}encoder.layer.{index}"
        for part in ("query", "key", "value"):
            yield from dense(f"{stem}.attention.self.{part}", width, width)
        yield from dense(f"{stem}.attention.output.dense", width, width)
        yield from layer_norm(f"{stem}.attention.output.LayerNorm", width)
        yield from dense(f"{stem}.intermediate.dense", inner, width)
        yield from dense(f"{stem}.output.dense", width, inner)
        yield from layer_norm(f"{stem}.output.LayerNorm", width)
    yield from dense(f"{prefix}pooler.dense", width, width)


def nomic(config: Json) -> Iterator[Weight]:
    width, inner = config["n_embd"], config["n_inner"]
    yield ("embeddings.word_embeddings.weight", (config["vocab_size"], width), 1.0, 0.0)
    yield ("embeddings.token_type_embeddings.weight", (config["type_vocab_size"], width), 0.3, 0.0)
    yield from layer_norm("emb_ln", width)
    for index in range(config["n_layer"]):
        stem = f"encoder.layers.{index}"
        yield matrix(f"{stem}.attn.Wqkv", 3 * width, width, 1.2)
        yield matrix(f"{stem}.attn.out_proj", width, width)
        yield from layer_norm(f"{stem}.norm1", width)
        yield from layer_norm(f"{stem}.norm2", width)
        yield matrix(f"{stem}.mlp.fc11", inner, width)
        yield matrix(f"{stem}.mlp.fc12", inner, width)
        yield matrix(f"{stem}.mlp.fc2", width, inner)
