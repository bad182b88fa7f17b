"""`qwen35` and `qwen35moe`: Qwen 3.5, most of whose blocks are Gated DeltaNets.

Source: llama.cpp, `LLM_ARCH_QWEN35`, `llm_build_qwen35` and `llm_build_delta_net_base`: every fourth
block (`full_attention_interval`) attends, with a norm on each head of q and k, NEOX halves on a part
of the head and a gate on what comes out; the norm before the feed-forward network is called
`post_attention_norm`. Text positions are the same in every section of the rotation. The experts'
shares are divided by the sum of the chosen ones. Blocks that predict further ids are left out.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention, GatedDeltaNet
from converters.architectures.mixture import experts, has_experts
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe
from converters.errors import MalformedFile

ATTENTION_PERIOD = 4


def describe(header: Header) -> ModelShape:
    """Raises MalformedFile where no block attends: then there are no heads to rotate."""
    attending = [
        index for index in range(decoder.block_count(header)) if not _is_recurrent(header, index)
    ]
    if not attending:
        raise MalformedFile(f"{header.architecture} without a block that attends")

    def block(index: int) -> BlockShape:
        mixer = (_delta_net if _is_recurrent(header, index) else _attention)(header, index)
        is_mixture = has_experts(header, index)
        feed_forward = (experts if is_mixture else decoder.gated_feed_forward)(header, index)
        return decoder.pre_norm_block(
            header, index, mixer, feed_forward, feed_forward_norm="post_attention_norm"
        )

    recipe = rope_recipe(header, _attention(header, attending[0]).head_size)
    return decoder.decoder(header, block, {"global": recipe})


def _is_recurrent(header: Header, index: int) -> bool:
    """The tensors say it; a block with neither kind's is found out by what it lacks."""
    return header.has_tensor(f"blk.{index}.ssm_conv1d.weight")


def _attention(header: Header, index: int) -> Attention:
    return grouped_attention(
        header, index, interleaved=False, has_head_norms=True, has_output_gate=True
    )


def _delta_net(header: Header, index: int) -> GatedDeltaNet:
    stem, width = f"blk.{index}", header.width
    size, key_heads = header.count("ssm.state_size"), header.count("ssm.group_count")
    value_heads = header.tensor(f"{stem}.ssm_a").shape[0]
    if not size or not key_heads or value_heads % key_heads:
        raise MalformedFile(f"'{stem}.ssm_a': {value_heads} value heads for {key_heads} key heads")
    channels, values = (2 * key_heads + value_heads) * size, value_heads * size
    kernel = header.tensor(f"{stem}.ssm_conv1d.weight").shape
    if len(kernel) != 2 or kernel[0] != channels or kernel[1] < 2:
        raise MalformedFile(f"tensor '{stem}.ssm_conv1d.weight' has shape {list(kernel)}")
    return GatedDeltaNet(
        key_heads=key_heads,
        value_heads=value_heads,
        size=size,
        mixed=header.linear(f"{stem}.attn_qkv", columns=width, rows=channels),
        gate=header.linear(f"{stem}.attn_gate", columns=width, rows=values),
        alpha=header.linear(f"{stem}.ssm_alpha", columns=width, rows=value_heads),
        beta=header.linear(f"{stem}.ssm_beta", columns=width, rows=value_heads),
        output=header.linear(f"{stem}.ssm_out", columns=values, rows=width),
        kernel=f"{stem}.ssm_conv1d.weight",
        length=kernel[1],
        decay=header.vector(f"{stem}.ssm_a", value_heads),
        time_bias=header.vector(f"{stem}.ssm_dt.bias", value_heads),
        norm=decoder.norm(header, f"{stem}.ssm_norm", size),
    )
