"""One transformer block in a graph: its mixer, its feed-forward network, and how they join the stream.

`narrowed` is how a decoder keeps only the wanted ids after the last block's mixer.
"""

from __future__ import annotations

from collections.abc import Callable

from converters.architectures.mixers import (
    Attention,
    GatedDeltaNet,
    LatentAttention,
    Mamba2,
    ShortConvolution,
)
from converters.architectures.model import BlockShape, Mixer
from converters.architectures.parts import Absent
from converters.targets.onnx.attention import Context, grouped_attention
from converters.targets.onnx.feed_forward import feed_forward
from converters.targets.onnx.latent_attention import latent_attention
from converters.targets.onnx.mamba2 import mamba2
from converters.targets.onnx.parts import Parts, Stream
from converters.targets.onnx.recurrent import gated_delta_net, short_convolution

Narrow = Callable[[str, str], str]


def add_block(
    parts: Parts,
    context: Context,
    stream: Stream,
    index: int,
    block: BlockShape,
    narrowed: Narrow | None = None,
) -> None:
    if block.is_parallel:
        _add_parallel(parts, context, stream, index, block, narrowed)
        return
    if isinstance(block.mixer, Absent):
        if narrowed:
            stream.value = narrowed(parts.settled(stream), "residual")
    else:
        _, branch = _mixer_branch(parts, context, stream, index, block, block.mixer, narrowed)
        _join_attention(parts, stream, branch, block)
    if isinstance(block.feed_forward, Absent):
        return
    x = parts.stream_norm(stream, block.feed_forward_norm)
    branch = feed_forward(parts, x, index, block.feed_forward)
    parts.add(stream, branch, block.post_feed_forward_norm, block.residual_scale)
    if block.after_feed_forward_norm:
        stream.value = parts.stream_norm(stream, block.after_feed_forward_norm)


def _add_parallel(
    parts: Parts,
    context: Context,
    stream: Stream,
    index: int,
    block: BlockShape,
    narrowed: Narrow | None,
) -> None:
    assert not isinstance(block.mixer, Absent) and not isinstance(block.feed_forward, Absent)
    x, branch = _mixer_branch(parts, context, stream, index, block, block.mixer, narrowed)
    if block.feed_forward_norm:
        x = parts.norm(stream.value, block.feed_forward_norm)
    elif narrowed:
        x = narrowed(x, "normed")
    other = feed_forward(parts, x, index, block.feed_forward)
    branch = parts.graph.node("Add", [branch, other], "both_branches")
    parts.add(stream, branch, None, block.residual_scale)


def _mixer_branch(
    parts: Parts,
    context: Context,
    stream: Stream,
    index: int,
    block: BlockShape,
    mixer: Mixer,
    narrowed: Narrow | None,
) -> tuple[str, str]:
    """(what the mixer read, what it adds to the stream); the latter and the stream are narrowed."""
    x = parts.stream_norm(stream, block.attention_norm)
    mixed = _mixed(parts, context, x, index, mixer)
    if narrowed:
        stream.value = narrowed(parts.settled(stream), "residual")
        mixed = narrowed(mixed, "mixed")
    return x, parts.linear(mixed, mixer.output)


def _join_attention(parts: Parts, stream: Stream, branch: str, block: BlockShape) -> None:
    before = parts.settled(stream)
    parts.add(stream, branch, block.post_attention_norm, block.residual_scale)
    if block.after_attention_norm:
        stream.value = parts.stream_norm(stream, block.after_attention_norm)
    if block.second_after_norm:
        stream.branch = before
        stream.value = parts.stream_norm(stream, block.second_after_norm)


def _mixed(parts: Parts, context: Context, x: str, index: int, mixer: Mixer) -> str:
    """The mixer's numbers before its output projection."""
    match mixer:
        case Attention():
            return grouped_attention(parts, context, x, index, mixer)
        case LatentAttention():
            return latent_attention(parts, context, x, index, mixer)
        case ShortConvolution():
            return short_convolution(parts, x, index, mixer)
        case GatedDeltaNet():
            return gated_delta_net(parts, x, index, mixer)
        case Mamba2():
            return mamba2(parts, x, index, mixer)
