"""The parts that decoders share; an architecture file composes them and adds its own.

Shapes of tensors decide, metadata only fills in what shapes cannot tell (how many heads there are).
Source: llama.cpp's `llama_model::load_tensors` and its graph builders, one per architecture.
"""

from __future__ import annotations

from collections.abc import Callable

from converters.architectures.experts import Experts
from converters.architectures.header import Header
from converters.architectures.model import (
    BlockShape,
    Encoder,
    Mixer,
    ModelShape,
    Pooling,
    RopeRecipe,
    Temperature,
)
from converters.architectures.parts import Activation, FeedForward, Linear, Norm
from converters.errors import MalformedFile, Unsupported

# `pooling_type` as llama.cpp numbers it.
POOLINGS: tuple[Pooling, ...] = ("", "mean", "cls", "last", "rank")


def decoder(
    header: Header,
    block: Callable[[int], BlockShape],
    rope: dict[str, RopeRecipe],
    *,
    embedding_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float = 0.0,
    output_norm: str = "output_norm",
    is_centered: bool = False,
    temperature: Temperature | None = None,
    deepstack: int = 0,
    unused: tuple[str, ...] = (),
) -> ModelShape:
    """The whole model around its blocks; `output.weight` absent means tied.

    A file that names a pooling gives vectors: its head, if it has one, is left out.
    """
    embedding = header.linear("token_embd")
    width = embedding.columns
    encoder = pooled(header, width)
    output = None if encoder else _head(header, embedding)
    left_out = ("output.weight",) if encoder and header.has_tensor("output.weight") else ()
    return ModelShape(
        architecture=header.architecture,
        name=header.name,
        embedding_length=width,
        vocabulary=_vocabulary(header, embedding, output),
        context_length=context_length(header),
        epsilon=header.epsilon(is_centered=is_centered),
        embedding=embedding,
        output_norm=norm(header, output_norm, width, is_centered=is_centered),
        output=output,
        blocks=tuple(block(index) for index in range(block_count(header))),
        rope=rope,
        embedding_scale=embedding_scale,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        temperature=temperature,
        encoder=encoder,
        deepstack=0 if encoder else deepstack,
        unused=unused + left_out,
    )


def _head(header: Header, embedding: Linear) -> Linear:
    if not header.has_tensor("output.weight"):
        return embedding
    return header.linear("output", columns=embedding.columns)


def pooled(header: Header, width: int) -> Encoder | None:
    """What `pooling_type` asks of a decoder; None where it asks for nothing."""
    pooling = pooling_of(header)
    is_causal = header.flag("attention.causal", True)
    if not pooling:
        if not is_causal:
            raise Unsupported(f"{header.architecture} with bidirectional attention and no pooling")
        return None
    if pooling != "rank":
        return Encoder(pooling=pooling, is_causal=is_causal)
    scores = header.linear("cls.output", columns=width)
    return Encoder(
        pooling=pooling,
        is_causal=is_causal,
        projections=(scores,),
        has_softmax=header.architecture in ("qwen3", "qwen3vl"),
    )


def pooling_of(header: Header, default: int = 0) -> Pooling:
    number = header.count("pooling_type", default)
    if number >= len(POOLINGS):
        raise Unsupported(f"{header.architecture}.pooling_type {number} is not known")
    return POOLINGS[number]


def norm(header: Header, stem: str, *lengths: int, is_centered: bool = False) -> Norm:
    """`<stem>.weight`; LayerNorm may have a bias, RMSNorm has none."""
    weight = header.vector(f"{stem}.weight", *lengths)
    bias = header.optional_vector(f"{stem}.bias", *lengths) if is_centered else ""
    return Norm(weight=weight, bias=bias, is_centered=is_centered)


def block_count(header: Header) -> int:
    """Blocks that every id passes; those that predict further ids ahead are not among them."""
    count = header.block_count - header.count("nextn_predict_layers", 0)
    if count <= 0:
        raise MalformedFile(f"{header.architecture}.block_count leaves no blocks")
    return count


def context_length(header: Header) -> int:
    length = header.count("context_length")
    if not length:
        raise MalformedFile(f"{header.architecture}.context_length is 0")
    return length


def _vocabulary(header: Header, embedding: Linear, output: Linear | None) -> int:
    """Ids with a row in both tables and, where the file has a token list, with a text.

    Rows beyond the list (padding for other machines) are left out; so are texts beyond the rows.
    """
    rows = min(embedding.rows, output.rows) if output else embedding.rows
    return min(rows, header.token_count) if header.token_count else rows


def gated_feed_forward(
    header: Header, index: int, *, activation: Activation = "silu", suffix: str = ""
) -> FeedForward:
    """`blk.<index>.ffn_{gate,up,down}<suffix>`; the width is what the tensors say."""
    stem, width = f"blk.{index}.ffn", header.width
    up = header.linear(f"{stem}_up{suffix}", columns=width)
    return FeedForward(
        activation=activation,
        gate=header.linear(f"{stem}_gate{suffix}", columns=width, rows=up.rows),
        up=up,
        down=header.linear(f"{stem}_down{suffix}", columns=up.rows, rows=width),
    )


def fused_feed_forward(
    header: Header, index: int, *, activation: Activation = "silu"
) -> FeedForward:
    """`ffn_up` with the rows [gate; up], and `ffn_down`."""
    stem, width = f"blk.{index}.ffn", header.width
    up = header.linear(f"{stem}_up", columns=width)
    half, rest = divmod(up.rows, 2)
    if rest:
        raise MalformedFile(f"'{stem}_up.weight': {up.rows} rows are not two halves")
    down = header.linear(f"{stem}_down", columns=half, rows=width)
    return FeedForward(activation=activation, up=up, down=down, is_up_fused=True)


def plain_feed_forward(
    header: Header, index: int, activation: Activation, *, suffix: str = ""
) -> FeedForward:
    """`ffn_up<suffix>`, an activation and `ffn_down<suffix>`."""
    stem, width = f"blk.{index}.ffn", header.width
    up = header.linear(f"{stem}_up{suffix}", columns=width)
    down = header.linear(f"{stem}_down{suffix}", columns=up.rows, rows=width)
    return FeedForward(activation=activation, up=up, down=down)


def pre_norm_block(
    header: Header,
    index: int,
    mixer: Mixer,
    feed_forward: FeedForward | Experts,
    *,
    feed_forward_norm: str = "ffn_norm",
    residual_scale: float = 1.0,
    is_centered: bool = False,
) -> BlockShape:
    stem, width = f"blk.{index}", header.width
    return BlockShape(
        mixer=mixer,
        feed_forward=feed_forward,
        attention_norm=norm(header, f"{stem}.attn_norm", width, is_centered=is_centered),
        feed_forward_norm=norm(
            header, f"{stem}.{feed_forward_norm}", width, is_centered=is_centered
        ),
        residual_scale=residual_scale,
    )


def sandwich_block(
    header: Header,
    index: int,
    mixer: Mixer,
    feed_forward: FeedForward | Experts,
    *,
    has_pre_norms: bool = True,
) -> BlockShape:
    """Norms after both branches (`post_attention_norm`, `post_ffw_norm`), mostly before them too."""
    stem, width = f"blk.{index}", header.width
    return BlockShape(
        mixer=mixer,
        feed_forward=feed_forward,
        attention_norm=norm(header, f"{stem}.attn_norm", width) if has_pre_norms else None,
        post_attention_norm=norm(header, f"{stem}.post_attention_norm", width),
        feed_forward_norm=norm(header, f"{stem}.ffn_norm", width) if has_pre_norms else None,
        post_feed_forward_norm=norm(header, f"{stem}.post_ffw_norm", width),
    )
