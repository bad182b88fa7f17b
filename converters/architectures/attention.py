"""Reading grouped-query attention from a header: heads, windows, head norms."""

from __future__ import annotations

from collections.abc import Callable

from converters.architectures.header import Header
from converters.architectures.mixers import Attention
from converters.architectures.parts import Linear, Norm
from converters.errors import MalformedFile, Unsupported

# Attention operators take heads of a multiple of 8 only, on CPU and CUDA.
HEAD_STEP = 8
MAX_HEAD_SIZE = 1024


def grouped_attention(
    header: Header,
    index: int,
    *,
    interleaved: bool,
    rope: str = "global",
    scale: float = 0.0,
    window: int = 0,
    softcap: float = 0.0,
    has_head_norms: bool = False,
    is_norm_centered: bool = False,
    has_sinks: bool = False,
    alibi_bias: float = 0.0,
    has_output_gate: bool = False,
) -> Attention:
    """`blk.<index>.attn_{q,k,v}` or `attn_qkv`, and `attn_output`; `scale` 0 is 1/√head_size.

    `has_head_norms`: `attn_q_norm` and `attn_k_norm`, of one head's width or of all heads'.
    """
    stem = f"blk.{index}.attn"
    heads = header.counts("attention.head_count", index + 1)[index]
    query_parts = 2 if has_output_gate else 1
    shapes = _projections(header, stem, index, heads, query_parts=query_parts)
    head_size, kv_heads = shapes.head_size, shapes.kv_heads
    widths = (head_size, heads * head_size), (head_size, kv_heads * head_size)
    norms: list[Norm | None] = [None, None]
    if has_head_norms:
        norms = [
            _head_norm(header, f"{stem}_{part}_norm", wide, is_centered=is_norm_centered)
            for part, wide in zip("qk", widths, strict=True)
        ]
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        scale=scale or head_size**-0.5,
        query=shapes.query,
        key=shapes.key,
        value=shapes.value,
        fused=shapes.fused,
        output=header.linear(f"{stem}_output", columns=heads * head_size, rows=header.width),
        query_norm=norms[0],
        key_norm=norms[1],
        rope=rope,
        interleaved=interleaved,
        window=window,
        softcap=softcap,
        sinks=header.vector(f"{stem}_sinks.weight", heads) if has_sinks else "",
        alibi_bias=alibi_bias,
        has_output_gate=has_output_gate,
    )


class _Projections:
    """The three matrices, or the one that holds them all, and what their rows say."""

    def __init__(self, head_size: int, kv_heads: int, linears: dict[str, Linear]) -> None:
        self.head_size = head_size
        self.kv_heads = kv_heads
        self.query = linears.get("q")
        self.key = linears.get("k")
        self.value = linears.get("v")
        self.fused = linears.get("qkv")


def _projections(
    header: Header, stem: str, index: int, heads: int, *, query_parts: int
) -> _Projections:
    """A query of two parts is never in one matrix with the rest."""
    if header.has_tensor(f"{stem}_qkv.weight") and query_parts == 1:
        return _fused(header, stem, index, heads)
    query = header.linear(f"{stem}_q", columns=header.width)
    parts = heads * query_parts
    head_size = _checked_head_size(header, f"{stem}_q", query.rows, parts)
    key = header.linear(f"{stem}_k", columns=header.width)
    kv_heads, rest = divmod(key.rows, head_size)
    if rest or not kv_heads or heads % kv_heads:
        raise MalformedFile(f"'{stem}_k.weight': {key.rows} rows for heads of {head_size}")
    value = _value(header, stem, kv_heads, head_size)
    return _Projections(head_size, kv_heads, {"q": query, "k": key, "v": value})


def _fused(header: Header, stem: str, index: int, heads: int) -> _Projections:
    fused = header.linear(f"{stem}_qkv", columns=header.width)
    kv_heads = header.counts("attention.head_count_kv", index + 1, heads)[index]
    if not kv_heads or not heads or heads % kv_heads:
        raise MalformedFile(f"{header.architecture}.attention.head_count_kv is {kv_heads}")
    parts = heads + 2 * kv_heads
    head_size = _checked_head_size(header, f"{stem}_qkv", fused.rows, parts)
    return _Projections(head_size, kv_heads, {"qkv": fused})


def _checked_head_size(header: Header, stem: str, rows: int, heads: int) -> int:
    if not heads or rows % heads or not rows:
        raise MalformedFile(f"'{stem}.weight': {rows} rows do not divide into {heads} heads")
    head_size = rows // heads
    if head_size % HEAD_STEP:
        raise Unsupported(
            f"{header.architecture}: heads of {head_size} are not supported,"
            f" only multiples of {HEAD_STEP}"
        )
    if head_size > MAX_HEAD_SIZE:
        raise Unsupported(f"{header.architecture}: heads of {head_size} are not supported")
    return head_size


def _value(header: Header, stem: str, kv_heads: int, head_size: int) -> Linear:
    """Key and value caches share one shape here."""
    value = header.linear(f"{stem}_v", columns=header.width)
    value_size, rest = divmod(value.rows, kv_heads)
    if rest:
        raise MalformedFile(f"'{stem}_v.weight': {value.rows} rows for {kv_heads} heads")
    if value_size != head_size:
        raise Unsupported(
            f"{header.architecture}: values of {value_size} beside keys of {head_size}"
            " are not supported yet"
        )
    return value


def _head_norm(header: Header, stem: str, widths: tuple[int, ...], *, is_centered: bool) -> Norm:
    weight = header.vector(f"{stem}.weight", *widths)
    bias = header.optional_vector(f"{stem}.bias", *widths) if is_centered else ""
    return Norm(weight=weight, bias=bias, is_centered=is_centered)


def windows(header: Header, period: int, default: int = 0) -> Callable[[int], int]:
    """Block → sliding window, 0 for full attention.

    `attention.sliding_window_pattern` is the period p (the last of every p blocks sees all) or says
    it block by block; `period` and `default` are what holds where the file does not say.
    """
    window = header.count("attention.sliding_window", default)
    pattern = header.flags("attention.sliding_window_pattern")
    if pattern is None:
        period = header.count("attention.sliding_window_pattern", period)
    blocks = header.block_count
    if pattern is not None and len(pattern) < blocks:
        raise MalformedFile(
            f"{header.architecture}.attention.sliding_window_pattern has {len(pattern)} entries"
        )

    def window_of(index: int) -> int:
        if pattern is not None:
            return window if pattern[index] else 0
        return window if period == 0 or index % period < period - 1 else 0

    return window_of
