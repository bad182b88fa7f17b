"""`qwen3`: Qwen 3, and its embedding and reranking models (`pooling_type` last and rank); `qwen3vl`: the
text side of Qwen 3 VL.

Source: llama.cpp, `LLM_ARCH_QWEN3` and `llm_build_qwen3`: as qwen2 without biases, an RMSNorm on
each head of q and k before they are rotated, heads wider than E / H. `LLM_ARCH_QWEN3VL` and
`llm_build_qwen3vl` add rotation by interleaved sections: see `rope_recipe`. NOTE: of sections that
leave pairs over ([24, 20, 20] of 64) llama.cpp does not rotate pairs 61 and 62; the model does, and so
do we. `n_deepstack_layers`: after so many blocks images add something, which is nothing for text.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe
from converters.errors import MalformedFile


def describe(header: Header) -> ModelShape:
    def block(index: int) -> BlockShape:
        feed_forward = decoder.gated_feed_forward(header, index)
        return decoder.pre_norm_block(header, index, attention(header, index), feed_forward)

    recipe = rope_recipe(header, attention(header, 0).head_size)
    return decoder.decoder(header, block, {"global": recipe}, deepstack=deepstack(header))


def deepstack(header: Header) -> int:
    """Blocks, counted from the first, after which images add to the stream. Shared with `qwen3moe`."""
    count = header.count("n_deepstack_layers", 0)
    if count > decoder.block_count(header):
        raise MalformedFile(f"{header.architecture}.n_deepstack_layers is {count}")
    return count


def attention(header: Header, index: int) -> Attention:
    """Shared with `qwen3moe`."""
    return grouped_attention(header, index, interleaved=False, has_head_norms=True)
