"""`bert`, `nomic-bert(-moe)`, `jina-bert-v2`: encoders whose norms come after each branch is added.

Source: llama.cpp, `llm_build_bert`: LayerNorm; bert adds learned positions and GELU; nomic-bert
rotates NEOX halves and gates with SiLU, or as a mixture has neither gate but experts in every n-th
block; jina-bert-v2 biases its scores by distance (ALiBi, slopes
from 8), gates with GELU, and in its code models norms q, k and the sum with the input once more.
GELU is the exact one, as in the original implementations; llama.cpp's is its tanh approximation.
"""

from __future__ import annotations

from converters.architectures import decoder
from converters.architectures.attention import grouped_attention
from converters.architectures.experts import Experts
from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.mixture import plain_experts
from converters.architectures.model import BlockShape, Encoder, ModelShape, RopeRecipe
from converters.architectures.parts import FeedForward, Linear, Norm
from converters.architectures.rope_recipe import rope_recipe
from converters.errors import MalformedFile

ALIBI_BIAS = 8.0
POOLED_MEAN = 1


def describe(header: Header) -> ModelShape:
    embedding = header.linear("token_embd")
    width = embedding.columns
    ropes: dict[str, RopeRecipe] = {}
    if _rope(header):
        ropes["global"] = rope_recipe(header, _attention(header, 0).head_size)
    return ModelShape(
        architecture=header.architecture,
        name=header.name,
        embedding_length=width,
        vocabulary=min(embedding.rows, header.token_count or embedding.rows),
        context_length=_context_length(header),
        epsilon=header.epsilon(is_centered=True),
        embedding=embedding,
        output_norm=None,
        output=None,
        blocks=tuple(_block(header, index) for index in range(decoder.block_count(header))),
        rope=ropes,
        encoder=_encoder(header, width),
    )


def _rope(header: Header) -> str:
    return "global" if header.architecture in ("nomic-bert", "nomic-bert-moe") else ""


def _context_length(header: Header) -> int:
    """No longer than the table of positions."""
    length = decoder.context_length(header)
    if header.architecture != "bert":
        return length
    return min(length, header.tensor("position_embd.weight").shape[0])


def _encoder(header: Header, width: int) -> Encoder:
    pooling = decoder.pooling_of(header, POOLED_MEAN)
    positions = token_types = ""
    if header.architecture == "bert":
        header.linear("position_embd", columns=width)
        positions = "position_embd.weight"
    if header.has_tensor("token_types.weight"):
        if header.tensor("token_types.weight").shape[-1] != width:
            raise MalformedFile("tensor 'token_types.weight' is not as wide as the embeddings")
        token_types = "token_types.weight"
    return Encoder(
        pooling=pooling,
        positions=positions,
        token_types=token_types,
        embedding_norm=_norm(header, "token_embd_norm"),
        projections=_classifier(header, width) if pooling == "rank" else (),
        has_tanh=True,
    )


def _classifier(header: Header, width: int) -> tuple[Linear, ...]:
    """`cls`, tanh, `cls.output`; some have only one of the two."""
    found: list[Linear] = []
    for stem in ("cls", "cls.output"):
        if header.has_tensor(f"{stem}.weight"):
            found.append(header.linear(stem, columns=found[-1].rows if found else width))
    if not found:
        raise MalformedFile("a ranking model without the tensors 'cls' and 'cls.output'")
    return tuple(found)


def _block(header: Header, index: int) -> BlockShape:
    stem = f"blk.{index}"
    has_second = header.has_tensor(f"{stem}.attn_norm_2.weight")
    return BlockShape(
        mixer=_attention(header, index),
        feed_forward=_feed_forward(header, index),
        after_attention_norm=_norm(header, f"{stem}.attn_output_norm"),
        second_after_norm=_norm(header, f"{stem}.attn_norm_2") if has_second else None,
        after_feed_forward_norm=_norm(header, f"{stem}.layer_output_norm"),
    )


def _norm(header: Header, stem: str) -> Norm:
    return decoder.norm(header, stem, header.width, is_centered=True)


def _attention(header: Header, index: int) -> Attention:
    return grouped_attention(
        header,
        index,
        interleaved=False,
        rope=_rope(header),
        has_head_norms=header.has_tensor(f"blk.{index}.attn_q_norm.weight"),
        is_norm_centered=True,
        alibi_bias=ALIBI_BIAS if header.architecture == "jina-bert-v2" else 0.0,
    )


def _feed_forward(header: Header, index: int) -> FeedForward | Experts:
    period = header.count("moe_every_n_layers", 0)
    if period and index % period == 1:
        return plain_experts(header, index, "gelu", is_normalised=False)
    if header.architecture == "nomic-bert":
        return decoder.gated_feed_forward(header, index)
    if header.architecture in ("bert", "nomic-bert-moe"):
        return decoder.plain_feed_forward(header, index, "gelu")
    if header.has_tensor(f"blk.{index}.ffn_gate.weight"):
        return decoder.gated_feed_forward(header, index, activation="gelu")
    return decoder.fused_feed_forward(header, index, activation="gelu")
