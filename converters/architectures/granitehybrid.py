"""`granitehybrid`: IBM's Granite 4.0 H, most of whose blocks are Mamba 2; dense, or with experts.

Source: llama.cpp, `LLM_ARCH_GRANITE_HYBRID` and `llama_model_granite_hybrid`: a block without KV heads is
recurrent. All else is as in `granite`: NORM pairs, rotated only where `rope.scaling.finetuned` does not
say no, as it does in every published file, and the same four multipliers.
"""

from __future__ import annotations

from converters.architectures import decoder, granite
from converters.architectures.header import Header
from converters.architectures.mamba2 import mamba2
from converters.architectures.mixers import Attention, Mamba2
from converters.architectures.model import ModelShape
from converters.errors import MalformedFile


def describe(header: Header) -> ModelShape:
    """Raises MalformedFile where no block attends: then it is no hybrid."""
    kv_heads = header.counts("attention.head_count_kv", decoder.block_count(header))
    attending = [index for index, count in enumerate(kv_heads) if count]
    if not attending:
        raise MalformedFile(f"{header.architecture} without a block that attends")

    def mixer(index: int) -> Attention | Mamba2:
        attends = kv_heads[index] > 0
        return granite.attention(header, index) if attends else mamba2(header, index)

    divisor = header.number("logit_scale", 0.0) or 1.0
    scales = granite.multipliers(header, divisor)
    return granite.described(header, mixer, attending[0], scales)
