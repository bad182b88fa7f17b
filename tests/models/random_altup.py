"""Test architectures with several residual streams; see `random_architectures` for what an entry is.

llama.cpp fixes for Gemma 3n what files could say: 4 streams, low-rank residuals of 64, 256 numbers
per block and id, 10 sparse blocks, 20 with keys and values of their own.
"""

import math
from collections.abc import Iterator

from tests.models.random_parts import (
    Architecture,
    Shape,
    Value,
    Weight,
    attention,
    embedding_and_head,
    gated_feed_forward,
    matrix,
    norm,
)

STREAMS = 4
RANK = 64
PER_BLOCK = 256
SPARSE_BLOCKS = 10
BLOCKS_WITH_KEYS = 20
WINDOW_PERIOD = 5
# Norms of what joins a stream. Small, as in trained models, or else 25 blocks make anything of a
# rounding; smaller behind a GELU, which llama.cpp takes from a table of half floats.
_BRANCHES = {
    "post_attention_norm": 0.3,
    "laurel_post_norm": 0.3,
    "post_ffw_norm": 0.006,
    "post_norm": 0.006,
}
# Of the normal distribution: 95 % lie below.
SPARSITY = 1.6448533535003662


def gemma3n_weights(shape: Shape) -> Iterator[Weight]:
    width, joint = shape.embedding, shape.blocks * PER_BLOCK
    yield from embedding_and_head(shape)
    yield Weight("per_layer_token_embd.weight", (shape.vocabulary, joint), PER_BLOCK**-0.5)
    yield matrix("per_layer_model_proj.weight", joint, width, math.sqrt(width))
    yield norm("per_layer_proj_norm.weight", PER_BLOCK)
    for name in ("altup_proj", "altup_unembd_proj"):
        yield Weight(f"{name}.weight", (STREAMS - 1, width, width), width**-0.5)
    for index in range(shape.blocks):
        yield from _block(f"blk.{index}.", shape)


def _block(prefix: str, shape: Shape) -> Iterator[Weight]:
    width = shape.embedding
    for name in ("attn_norm", "ffn_norm", "altup_router_norm"):
        yield norm(f"{prefix}{name}.weight", width)
    for name, mean in _BRANCHES.items():
        yield Weight(f"{prefix}{name}.weight", (width,), mean / 3, mean, is_matrix=False)
    yield from attention(prefix, shape)
    for name in ("attn_q_norm", "attn_k_norm"):  # nothing else divides the scores
        yield Weight(f"{prefix}{name}.weight", (shape.head_size,), 0.1, 0.4, is_matrix=False)
    yield from gated_feed_forward(prefix, shape)
    yield matrix(f"{prefix}inp_gate.weight", PER_BLOCK, width)
    yield matrix(f"{prefix}proj.weight", width, PER_BLOCK)
    yield matrix(f"{prefix}laurel_l.weight", RANK, width)
    yield matrix(f"{prefix}laurel_r.weight", width, RANK)
    yield norm(f"{prefix}altup_correct_scale.weight", width)
    yield matrix(f"{prefix}altup_router.weight", STREAMS, width, 0.5 * width)
    for name, rows in (("correct", STREAMS), ("predict", STREAMS**2)):
        coefficients = (rows, STREAMS)
        yield Weight(f"{prefix}altup_{name}_coef.weight", coefficients, 0.1, is_matrix=False)


def gemma3n_metadata(shape: Shape) -> dict[str, Value]:
    blocks = range(shape.blocks)
    return {
        "rope.freq_base": 1000000.0,
        "altup.active_idx": 0,
        "altup.num_inputs": STREAMS,
        "embedding_length_per_layer_input": PER_BLOCK,
        "activation_sparsity_scale": [
            SPARSITY if index < SPARSE_BLOCKS else -math.inf for index in blocks
        ],
        "attention.shared_kv_layers": max(shape.blocks - BLOCKS_WITH_KEYS, 0),
        "attention.sliding_window": 16,
        "attention.sliding_window_pattern": [
            index % WINDOW_PERIOD < WINDOW_PERIOD - 1 for index in blocks
        ],
    }


ALTUP: dict[str, Architecture] = {
    "gemma3n": Architecture("gemma3n", gemma3n_weights, gemma3n_metadata, is_tied=True),
}
