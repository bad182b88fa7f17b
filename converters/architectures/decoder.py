"""The parts that pre-norm decoders share; an architecture file composes them and adds its own.

Shapes of tensors decide, metadata only fills in what shapes cannot tell (how many heads there are).
Source: llama.cpp's `llama_model::load_tensors` and `llm_build_llama`.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from converters.architectures.header import Header
from converters.architectures.model import (
    Activation,
    Attention,
    BlockShape,
    FeedForward,
    Linear,
    ModelShape,
    RopeRecipe,
)
from converters.errors import MalformedFile, Unsupported

# GroupQueryAttention rotates heads of a multiple of 16 only, on CPU and CUDA.
HEAD_SIZE_STEP = 16
MAX_HEAD_SIZE = 1024


def decoder(
    header: Header,
    block: Callable[[int], BlockShape],
    rope: dict[str, RopeRecipe],
    *,
    embedding_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float = 0.0,
    output_norm: str = "output_norm.weight",
) -> ModelShape:
    """The whole model around its blocks; `output.weight` absent means tied."""
    embedding = header.linear("token_embd")
    width = embedding.columns
    is_tied = not header.has_tensor("output.weight")
    output = embedding if is_tied else header.linear("output", columns=width)
    return ModelShape(
        architecture=header.architecture,
        name=header.name,
        embedding_length=width,
        vocabulary=_vocabulary(header, embedding, output),
        context_length=_context_length(header),
        epsilon=header.positive("attention.layer_norm_rms_epsilon"),
        embedding=embedding,
        output_norm=header.vector(output_norm, width),
        output=output,
        blocks=tuple(block(index) for index in range(block_count(header))),
        rope=rope,
        embedding_scale=embedding_scale,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
    )


def block_count(header: Header) -> int:
    count = header.count("block_count")
    if not count:
        raise MalformedFile(f"{header.architecture}.block_count is 0")
    return count


def _context_length(header: Header) -> int:
    length = header.count("context_length")
    if not length:
        raise MalformedFile(f"{header.architecture}.context_length is 0")
    return length


def _vocabulary(header: Header, embedding: Linear, output: Linear) -> int:
    """Ids with a row in both tables and, where the file has a token list, with a text.

    Rows beyond the list (padding for other machines) are left out; so are texts beyond the rows.
    """
    rows = min(embedding.rows, output.rows)
    return min(rows, header.token_count) if header.token_count else rows


def grouped_attention(
    header: Header,
    index: int,
    *,
    interleaved: bool,
    rope: str = "global",
    scale: float = 0.0,
    window: int = 0,
    softcap: float = 0.0,
) -> Attention:
    """`blk.<index>.attn_{q,k,v,output}`; `scale` 0 is 1/√head_size."""
    stem = f"blk.{index}.attn"
    width = header.tensor("token_embd.weight").shape[-1]
    heads = header.counts("attention.head_count", index + 1)[index]
    query = header.linear(f"{stem}_q", columns=width)
    head_size = _head_size(header, f"{stem}_q", query.rows, heads, is_rotated=bool(rope))
    key = header.linear(f"{stem}_k", columns=width)
    kv_heads, rest = divmod(key.rows, head_size)
    if rest or not kv_heads or heads % kv_heads:
        raise MalformedFile(f"'{stem}_k.weight': {key.rows} rows for heads of {head_size}")
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        scale=scale or head_size**-0.5,
        query=query,
        key=key,
        value=_value(header, stem, width, kv_heads, head_size),
        output=header.linear(f"{stem}_output", columns=query.rows, rows=width),
        rope=rope,
        interleaved=interleaved,
        window=window,
        softcap=softcap,
    )


def _head_size(header: Header, stem: str, rows: int, heads: int, *, is_rotated: bool) -> int:
    if not heads or rows % heads:
        raise MalformedFile(f"'{stem}.weight': {rows} rows do not divide into {heads} heads")
    head_size = rows // heads
    if is_rotated and head_size % HEAD_SIZE_STEP:
        raise Unsupported(
            f"{header.architecture}: rotated heads of {head_size} are not supported,"
            f" only multiples of {HEAD_SIZE_STEP}"
        )
    if head_size > MAX_HEAD_SIZE:
        raise Unsupported(f"{header.architecture}: heads of {head_size} are not supported")
    return head_size


def _value(header: Header, stem: str, width: int, kv_heads: int, head_size: int) -> Linear:
    """Key and value caches share one shape here; multi-head latent attention will need two."""
    value = header.linear(f"{stem}_v", columns=width)
    value_size, rest = divmod(value.rows, kv_heads)
    if rest:
        raise MalformedFile(f"'{stem}_v.weight': {value.rows} rows for {kv_heads} heads")
    if value_size != head_size:
        raise Unsupported(
            f"{header.architecture}: values of {value_size} beside keys of {head_size}"
            " are not supported yet"
        )
    return value


def gated_feed_forward(
    header: Header, index: int, *, activation: Activation = "silu"
) -> FeedForward:
    """`blk.<index>.ffn_{gate,up,down}`; the width is what the tensors say."""
    stem = f"blk.{index}.ffn"
    width = header.tensor("token_embd.weight").shape[-1]
    up = header.linear(f"{stem}_up", columns=width)
    return FeedForward(
        activation=activation,
        gate=header.linear(f"{stem}_gate", columns=width, rows=up.rows),
        up=up,
        down=header.linear(f"{stem}_down", columns=up.rows, rows=width),
    )


def pre_norm_block(
    header: Header, index: int, attention: Attention, feed_forward: FeedForward
) -> BlockShape:
    width = header.tensor("token_embd.weight").shape[-1]
    return BlockShape(
        attention=attention,
        feed_forward=feed_forward,
        attention_norm=header.vector(f"blk.{index}.attn_norm.weight", width),
        feed_forward_norm=header.vector(f"blk.{index}.ffn_norm.weight", width),
    )


def rope_recipe(header: Header) -> RopeRecipe:
    """The model's one table, from its metadata. Raises Unsupported for scalings not known here."""
    head_size = _first_head_size(header)
    dimensions = header.count("rope.dimension_count", head_size)
    if dimensions % 2 or not 0 < dimensions <= head_size:
        raise MalformedFile(f"{header.architecture}.rope.dimension_count is {dimensions}")
    base = header.positive("rope.freq_base", 10000.0)
    factors = header.optional_vector("rope_freqs.weight", dimensions // 2)
    recipe = RopeRecipe(
        dimensions=dimensions,
        base=base,
        factors=factors,
        magnitude=header.positive("rope.scaling.attn_factor", 1.0),
    )
    return _scaled(header, recipe)


def _first_head_size(header: Header) -> int:
    heads = header.counts("attention.head_count", 1)[0]
    rows = header.tensor("blk.0.attn_q.weight").shape[0]
    return _head_size(header, "blk.0.attn_q", rows, heads, is_rotated=True)


def _scaled(header: Header, recipe: RopeRecipe) -> RopeRecipe:
    """The factor holds whatever the type says, except for `none`; the default type is linear."""
    kind = header.text("rope.scaling.type", "linear")
    scale = header.number("rope.scaling.factor", 0.0) or header.number("rope.scale_linear", 0.0)
    if kind == "none" or (kind == "linear" and scale in (0.0, 1.0)):
        return recipe
    if kind not in ("linear", "yarn"):
        raise Unsupported(f"{header.architecture}: rope scaling {kind!r} is not supported yet")
    if scale <= 0:
        raise MalformedFile(f"{header.architecture}.rope.scaling.factor is {scale}")
    if kind == "linear":
        return replace(recipe, scaling=kind, scale=scale)
    if recipe.base <= 1.0:
        raise MalformedFile(f"{header.architecture}.rope.freq_base is {recipe.base}")
    return replace(
        recipe,
        scaling=kind,
        scale=scale,
        original_context_length=_original_context(header),
        yarn_beta_fast=header.positive("rope.scaling.yarn_beta_fast", 32.0),
        yarn_beta_slow=header.positive("rope.scaling.yarn_beta_slow", 1.0),
    )


def _original_context(header: Header) -> int:
    key = "rope.scaling.original_context_length"
    return header.count(key, 0) or _context_length(header)
