"""`lfm2` and `lfm2moe`: Liquid's LFM2; attention in some blocks, a short causal convolution in the others.

Source: llama.cpp, `LLM_ARCH_LFM2`, `LLM_ARCH_LFM2MOE` and `llm_build_lfm2`: a block without KV heads
convolves; attention norms each head of q and k and rotates NEOX halves; the final norm is called
`token_embd_norm`. After its first dense blocks `lfm2moe` has experts, whose weights are always divided
by their sum.
"""

from __future__ import annotations

from converters.architectures import decoder, mixture
from converters.architectures.attention import grouped_attention
from converters.architectures.header import Header
from converters.architectures.mixers import Attention, ShortConvolution
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe
from converters.errors import MalformedFile


def describe(header: Header) -> ModelShape:
    """Raises MalformedFile where no block attends: then there are no heads to rotate."""
    blocks = range(decoder.block_count(header))
    attending = [index for index in blocks if not _convolves(header, index)]
    if not attending:
        raise MalformedFile(f"{header.architecture} without a block that attends")

    gating = mixture.routing_of(header).get("gating", "softmax")

    def block(index: int) -> BlockShape:
        mixer = (_convolution if _convolves(header, index) else _attention)(header, index)
        network = mixture.network(header, index, gating=gating)
        return decoder.pre_norm_block(header, index, mixer, network)

    recipe = rope_recipe(header, _attention(header, attending[0]).head_size)
    has_own = header.has_tensor("token_embd_norm.weight")
    return decoder.decoder(
        header,
        block,
        {"global": recipe},
        output_norm="token_embd_norm" if has_own else "output_norm",
    )


def _convolves(header: Header, index: int) -> bool:
    return header.has_tensor(f"blk.{index}.shortconv.conv.weight")


def _attention(header: Header, index: int) -> Attention:
    return grouped_attention(header, index, interleaved=False, has_head_norms=True)


def _convolution(header: Header, index: int) -> ShortConvolution:
    stem, width = f"blk.{index}.shortconv", header.width
    shape = header.tensor(f"{stem}.conv.weight").shape
    if len(shape) != 2 or shape[0] != width or shape[1] < 2:
        raise MalformedFile(f"tensor '{stem}.conv.weight' has shape {list(shape)}")
    return ShortConvolution(
        input=header.linear(f"{stem}.in_proj", columns=width, rows=3 * width),
        output=header.linear(f"{stem}.out_proj", columns=width, rows=width),
        kernel=f"{stem}.conv.weight",
        channels=width,
        length=shape[1],
    )
