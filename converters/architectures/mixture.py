"""Reading mixtures of experts from a header: `ffn_gate_inp`, `ffn_*_exps`, `ffn_*_shexp`.

Source: llama.cpp's `build_moe_ffn` and the `load_arch_tensors` that feed it.
"""

from __future__ import annotations

from typing import Literal, TypedDict, Unpack

from converters.architectures.decoder import gated_feed_forward, plain_feed_forward
from converters.architectures.experts import ExpertMatrix, Experts
from converters.architectures.header import Header
from converters.architectures.parts import FeedForward, Linear
from converters.errors import MalformedFile, Unsupported

Gating = Literal["softmax", "sigmoid"]
# `expert_gating_func` as llama.cpp numbers it; 3 takes the softmax over the chosen ones only.
GATINGS: dict[int, Gating] = {1: "softmax", 2: "sigmoid", 3: "softmax"}
SOFTMAX_OF_CHOSEN = 3


class Routing(TypedDict, total=False):
    """How experts are chosen and weighted, as `Experts` says it."""

    gating: Gating
    is_normalised: bool
    scale: float


def has_experts(header: Header, index: int) -> bool:
    return header.has_tensor(f"blk.{index}.ffn_gate_inp.weight")


def experts(
    header: Header,
    index: int,
    *,
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float = 0.0,
    **routing: Unpack[Routing],
) -> Experts:
    """The experts of one block and, where the tensors are there, the shared expert beside them."""
    stem, width = f"blk.{index}.ffn", header.width
    router = header.linear(f"{stem}_gate_inp", columns=width)
    count, used = router.rows, header.count("expert_used_count")
    if not 0 < used <= count:
        raise MalformedFile(f"{header.architecture}.expert_used_count is {used} of {count}")
    groups, groups_used = _groups(header, count, used)
    is_fused = header.has_tensor(f"{stem}_gate_up_exps.weight")
    up = _matrix(header, f"{stem}_{'gate_up' if is_fused else 'up'}_exps", count, columns=width)
    inner = up.rows // 2 if is_fused else up.rows
    gate = None
    if not is_fused:
        gate = _matrix(header, f"{stem}_gate_exps", count, rows=inner, columns=width)
    return Experts(
        count=count,
        used=used,
        router=router,
        gate=gate,
        up=up,
        down=_matrix(header, f"{stem}_down_exps", count, rows=width, columns=inner),
        is_gate_up_fused=is_fused,
        groups=groups,
        groups_used=groups_used,
        selection_bias=header.optional_vector(f"blk.{index}.exp_probs_b.bias", count),
        alpha=alpha,
        beta=beta,
        limit=limit,
        shared=_shared(header, index),
        shared_gate=_shared_gate(header, index),
        **routing,
    )


def network(header: Header, index: int, **routing: Unpack[Routing]) -> FeedForward | Experts:
    """The experts of a block that has a router, else its dense network."""
    if has_experts(header, index):
        return experts(header, index, **routing)
    return gated_feed_forward(header, index)


def plain_experts(
    header: Header,
    index: int,
    activation: Literal["gelu", "relu_squared"],
    **routing: Unpack[Routing],
) -> Experts:
    """Experts without gates, and the shared one beside them, which has none either.

    Between `ffn_latent_down` and `ffn_latent_up`, where those are there.
    """
    stem, width = f"blk.{index}.ffn", header.width
    router = header.linear(f"{stem}_gate_inp", columns=width)
    count, used = router.rows, header.count("expert_used_count")
    if not 0 < used <= count:
        raise MalformedFile(f"{header.architecture}.expert_used_count is {used} of {count}")
    groups, groups_used = _groups(header, count, used)
    latent_down = latent_up = None
    if header.has_tensor(f"{stem}_latent_down.weight"):
        latent_down = header.linear(f"{stem}_latent_down", columns=width)
        latent_up = header.linear(f"{stem}_latent_up", columns=latent_down.rows, rows=width)
    outer = latent_down.rows if latent_down else width
    up = _matrix(header, f"{stem}_up_exps", count, columns=outer)
    has_shared = header.has_tensor(f"{stem}_up_shexp.weight")
    shared = plain_feed_forward(header, index, activation, suffix="_shexp") if has_shared else None
    return Experts(
        count=count,
        used=used,
        router=router,
        up=up,
        down=_matrix(header, f"{stem}_down_exps", count, rows=outer, columns=up.rows),
        activation=activation,
        groups=groups,
        groups_used=groups_used,
        selection_bias=header.optional_vector(f"blk.{index}.exp_probs_b.bias", count),
        shared=shared,
        latent_down=latent_down,
        latent_up=latent_up,
        **routing,
    )


def _matrix(
    header: Header, stem: str, count: int, *, rows: int = 0, columns: int = 0
) -> ExpertMatrix:
    shape = header.tensor(f"{stem}.weight").shape
    if len(shape) != 3 or shape != (count, rows or shape[1], columns or shape[2]):
        raise MalformedFile(f"tensor '{stem}.weight' has shape {list(shape)} for {count} experts")
    bias = ""
    if header.has_tensor(f"{stem}.bias"):
        bias = f"{stem}.bias"
        if header.tensor(bias).shape != shape[:2]:
            raise MalformedFile(f"tensor {bias!r} has another shape than its weight")
    return ExpertMatrix(weight=f"{stem}.weight", rows=shape[1], columns=shape[2], bias=bias)


def _shared(header: Header, index: int) -> FeedForward | None:
    if not header.has_tensor(f"blk.{index}.ffn_up_shexp.weight"):
        return None
    return gated_feed_forward(header, index, suffix="_shexp")


def _shared_gate(header: Header, index: int) -> Linear | None:
    """`ffn_gate_inp_shexp`: a vector [E], which is a matrix of one row."""
    name = f"blk.{index}.ffn_gate_inp_shexp.weight"
    if not header.has_tensor(name):
        return None
    shape = header.tensor(name).shape
    if shape not in ((header.width,), (1, header.width)):
        raise MalformedFile(f"tensor {name!r} has shape {list(shape)}")
    return Linear(weight=name, rows=1, columns=header.width)


def routing_of(header: Header, default: int = 1) -> Routing:
    """By `expert_gating_func`, which is `default` where the file does not say, and what goes with it."""
    number = header.count("expert_gating_func", default) or default
    if number not in GATINGS:
        raise Unsupported(f"{header.architecture}.expert_gating_func {number} is not supported")
    return Routing(
        gating=GATINGS[number],
        is_normalised=header.flag("expert_weights_norm", False) or number == SOFTMAX_OF_CHOSEN,
        scale=header.number("expert_weights_scale", 0.0) or 1.0,
    )


def _groups(header: Header, count: int, used: int) -> tuple[int, int]:
    """How many groups there are and how many are chosen; (1, 1) where that makes no difference."""
    groups = header.count("expert_group_count", 1) or 1
    groups_used = header.count("expert_group_used_count", groups) or groups
    size, rest = divmod(count, groups)
    if rest or groups_used > groups or used > groups_used * size or (groups > 1 and size < 2):
        raise MalformedFile(
            f"{header.architecture}: {used} of {count} experts in {groups_used} of {groups} groups"
        )
    return (groups, groups_used) if groups_used < groups else (1, 1)
