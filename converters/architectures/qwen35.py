"""`qwen3next`, `qwen35` and `qwen35moe`: Qwen 3 Next and 3.5, most of whose blocks are Gated DeltaNets.

Source: llama.cpp, `LLM_ARCH_QWEN35`, `llm_build_qwen35`, `llm_build_qwen3next` and
`llm_build_delta_net_base`: every fourth
block (`full_attention_interval`) attends, with a norm on each head of q and k, NEOX halves on a part
of the head and a gate on what comes out; the norm before the feed-forward network is called
`post_attention_norm`. Text positions are the same in every section of the rotation. The experts'
shares are divided by the sum of the chosen ones. Blocks that predict further ids are left out.
Qwen 3 Next keeps the value heads of one key head together, and beta and alpha in one matrix; its early
files have one more matrix for all that is convolved and its gate.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention, GatedDeltaNet
from converters.architectures.mixture import experts, has_experts
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.parts import Linear
from converters.architectures.rope_recipe import rope_recipe
from converters.errors import MalformedFile

GROUPED = "qwen3next"


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
        output=header.linear(f"{stem}.ssm_out", columns=values, rows=width),
        kernel=f"{stem}.ssm_conv1d.weight",
        length=kernel[1],
        decay=header.vector(f"{stem}.ssm_a", value_heads),
        time_bias=header.vector(f"{stem}.ssm_dt.bias", value_heads),
        norm=decoder.norm(header, f"{stem}.ssm_norm", size),
        is_grouped=header.architecture == GROUPED,
        **_inputs(header, stem, channels, values),
        **_rates(header, stem, value_heads),
    )


def _inputs(header: Header, stem: str, channels: int, values: int) -> dict[str, Linear]:
    width = header.width
    if header.architecture == GROUPED and header.has_tensor(f"{stem}.ssm_in.weight"):
        rows = channels + values
        return {"fused": header.linear(f"{stem}.ssm_in", columns=width, rows=rows)}
    return {
        "mixed": header.linear(f"{stem}.attn_qkv", columns=width, rows=channels),
        "gate": header.linear(f"{stem}.attn_gate", columns=width, rows=values),
    }


def _rates(header: Header, stem: str, heads: int) -> dict[str, Linear]:
    width = header.width
    if header.architecture == GROUPED:
        return {"beta_alpha": header.linear(f"{stem}.ssm_ba", columns=width, rows=2 * heads)}
    return {
        "alpha": header.linear(f"{stem}.ssm_alpha", columns=width, rows=heads),
        "beta": header.linear(f"{stem}.ssm_beta", columns=width, rows=heads),
    }
