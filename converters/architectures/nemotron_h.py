"""`nemotron_h` and `nemotron_h_moe`: NVIDIA's Nemotron H, Nano 2 and 3; each block is one part only.

Source: llama.cpp, `LLM_ARCH_NEMOTRON_H`, `LLM_ARCH_NEMOTRON_H_MOE` and `llama_model_nemotron_h`: a block with
neither KV heads nor a feed-forward length is Mamba 2, one without the length attends, and the others are
feed-forward networks of squared ReLU. Nothing is rotated. Experts are chosen by sigmoid with a bias, and
a shared one is added; all of them lack a gate. In Nemotron 3 Super they read a narrower latent.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mamba2 import mamba2
from converters.architectures.mixers import Attention
from converters.architectures.mixture import has_experts, plain_experts
from converters.architectures.model import BlockShape, Mixer, ModelShape, Network
from converters.architectures.parts import Absent
from converters.errors import MalformedFile, Unsupported


def describe(header: Header) -> ModelShape:
    """Raises MalformedFile where no block attends: then it is no hybrid."""
    count = decoder.block_count(header)
    kv_heads = header.counts("attention.head_count_kv", count)
    widths = header.counts("feed_forward_length", count)
    if not any(heads and not width for heads, width in zip(kv_heads, widths, strict=True)):
        raise MalformedFile(f"{header.architecture} without a block that attends")

    def block(index: int) -> BlockShape:
        norm = decoder.norm(header, f"blk.{index}.attn_norm", header.width)
        if widths[index]:
            network = _network(header, index)
            return BlockShape(mixer=Absent(), feed_forward=network, feed_forward_norm=norm)
        mixer: Mixer = _attention(header, index) if kv_heads[index] else mamba2(header, index)
        return BlockShape(mixer=mixer, feed_forward=Absent(), attention_norm=norm)

    return decoder.decoder(header, block, {})


def _attention(header: Header, index: int) -> Attention:
    scale = header.number("attention.scale", 0.0)
    return grouped_attention(header, index, interleaved=False, rope="", scale=scale)


def _network(header: Header, index: int) -> Network:
    if not has_experts(header, index):
        return decoder.plain_feed_forward(header, index, "relu_squared")
    if header.integers("expert_used_count"):
        raise Unsupported(
            f"{header.architecture}: another number of experts in each block is not supported yet"
        )
    return plain_experts(
        header,
        index,
        "relu_squared",
        gating="sigmoid",
        is_normalised=header.flag("expert_weights_norm", False),
        scale=header.number("expert_weights_scale", 0.0) or 1.0,
    )
