"""`gpt-oss`: OpenAI's gpt-oss.

Source: llama.cpp, `LLM_ARCH_OPENAI_MOE` and `llm_build_openai_moe`: biases everywhere, a learned sink
in each head's softmax, a sliding window in every even block, YaRN over NEOX halves; the norm before
the experts is called `post_attention_norm`; the experts' swiglu is clipped at 7 with α = 1.702 and
β = 1, and they share the softmax over the chosen ones.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention, windows
from converters.architectures.header import Header
from converters.architectures.mixture import experts
from converters.architectures.model import BlockShape, ModelShape
from converters.architectures.rope_recipe import rope_recipe

WINDOW_PERIOD = 2
ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0


def describe(header: Header) -> ModelShape:
    window = windows(header, WINDOW_PERIOD)

    def block(index: int) -> BlockShape:
        attention = grouped_attention(
            header, index, interleaved=False, window=window(index), has_sinks=True
        )
        mixture = experts(header, index, alpha=ALPHA, beta=BETA, limit=LIMIT)
        return decoder.pre_norm_block(
            header, index, attention, mixture, feed_forward_norm="post_attention_norm"
        )

    head_size = grouped_attention(header, 0, interleaved=False).head_size
    return decoder.decoder(header, block, {"global": rope_recipe(header, head_size)})
