"""Which tensor goes to which module of an mlx-lm model, block by block.

Reads no weights. Every tensor that the architecture uses gets a place here, or the file is refused.
"""

from __future__ import annotations

from msgspec.structs import replace

from converters.architectures.experts import ExpertMatrix, Experts
from converters.architectures.mixers import (
    Attention,
    GatedDeltaNet,
    LatentAttention,
    Mamba2,
    ShortConvolution,
)
from converters.architectures.model import BlockShape, Encoder, ModelShape
from converters.architectures.parts import Absent, FeedForward, Linear
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.targets.mlx import mixers
from converters.targets.mlx.altup import place_altup
from converters.targets.mlx.layout import Layout, Run
from converters.targets.mlx.models.family import Family
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.placer import Placer

# Modules take 0 for experts outside of the chosen groups, which no expert within may fall below. What is
# added to all of them changes no choice.
ABOVE_NOTHING = 16.0


def plan_layout(model: ModelShape, tensors: dict[str, TensorInfo], family: Family) -> Layout:
    """Raises Unsupported for a tensor that has no place in the family or no form."""
    placer = Placer(model, tensors, family)
    names = family.names
    placer.matrix(names.embedding, "", model.embedding, rows=model.vocabulary)
    placer.norm(names.output_norm, model.output_norm)
    if not model.is_tied and model.output is not None:
        placer.matrix(names.output, "", model.output, rows=model.vocabulary)
    if model.encoder:
        _place_encoder(placer, model.encoder, model.embedding_length, tensors)
    for index, block in enumerate(model.blocks):
        stem = names.block.format(index)
        _place_mixer(placer, stem, block, family)
        match block.feed_forward:
            case FeedForward() as network:
                _place_feed_forward(placer, stem, network, family)
            case Experts() as experts:
                _place_experts(placer, stem, experts, family)
            case Absent():
                pass
        _place_norms(placer, stem, block, family)
    if model.altup:
        place_altup(placer, model, model.altup, names)
    return placer.finish()


def _place_encoder(
    placer: Placer, encoder: Encoder, width: int, tensors: dict[str, TensorInfo]
) -> None:
    """What is added to embeddings, dense, and what is done with the pooled vector."""
    if encoder.positions:
        rows = tensors[encoder.positions].shape[0]
        table = Linear(weight=encoder.positions, rows=rows, columns=width)
        placer.stack("positions", table, (rows,), is_dense=True)
    if encoder.token_types:
        table = Linear(weight=encoder.token_types, rows=1, columns=width)
        placer.stack("token_type", table, (1,), is_dense=True)
    placer.norm("embedding_norm", encoder.embedding_norm)
    for place, projection in enumerate(encoder.projections):
        placer.matrix(f"projections.{place}", "", projection)


def _place_mixer(placer: Placer, stem: str, block: BlockShape, family: Family) -> None:
    match block.mixer:
        case Attention() as attention:
            _place_attention(placer, stem, attention, family)
        case LatentAttention() as attention:
            mixers.place_latent(placer, stem, attention, family)
        case ShortConvolution() as convolution:
            mixers.place_convolution(placer, stem, convolution, family)
        case GatedDeltaNet() as net:
            mixers.place_delta_net(placer, stem, net, family)
        case Mamba2() as mamba:
            mixers.place_mamba2(placer, stem, mamba, family)
        case Absent():
            pass


def _place_attention(placer: Placer, stem: str, attention: Attention, family: Family) -> None:
    names = family.names
    turned = attention.head_size if _is_turned(attention, family) else 0
    for role, linear, head_size in (
        ("query", attention.query, turned),
        ("key", attention.key, turned),
        ("value", attention.value, 0),
        ("attention_gate", attention.gate, 0),
        ("attention_output", attention.output, 0),
    ):
        if linear is not None:
            path = f"{stem}.{getattr(names, role)}"
            placer.matrix(path, role, linear, head_size=head_size)
    if attention.fused:
        _place_fused(placer, stem, attention, attention.fused, family)
    placer.norm(f"{stem}.{names.query_norm}", attention.query_norm)
    placer.norm(f"{stem}.{names.key_norm}", attention.key_norm)
    if attention.sinks:
        placer.vector(f"{stem}.{names.sinks}", attention.sinks, attention.heads)


def _place_fused(
    placer: Placer, stem: str, attention: Attention, fused: Linear, family: Family
) -> None:
    names, size = family.names, attention.head_size
    heads, kv_heads = attention.heads, attention.kv_heads
    runs: tuple[Run, ...] = ()
    if family.fused == "cut":
        first = 0
        for role, count in (("query", heads), ("key", kv_heads), ("value", kv_heads)):
            rows, path = count * size, f"{stem}.{getattr(names, role)}"
            part = replace(fused, rows=rows)
            placer.matrix(path, role, part, runs=(Run(first, 0, rows),))
            first += rows
        return
    if family.fused == "by head":
        runs = tuple(
            Run((part * heads + head) * size, (3 * head + part) * size, size)
            for head in range(heads)
            for part in range(3)
        )
    placer.matrix(f"{stem}.{names.fused}", "fused", fused, runs=runs)


def _is_turned(attention: Attention, family: Family) -> bool:
    is_turned = attention.interleaved and bool(attention.rope) and not family.keeps_pairs
    if is_turned and (attention.fused or attention.query_norm):
        raise Unsupported(f"mlx-lm's {family.model_type} model rotates halves, this file pairs")
    return is_turned


def _place_feed_forward(
    placer: Placer, stem: str, feed_forward: FeedForward, family: Family
) -> None:
    names = family.names
    up = "fused_up" if feed_forward.is_up_fused else "up"
    roles = (("gate", feed_forward.gate), (up, feed_forward.up), ("down", feed_forward.down))
    for role, linear in roles:
        if linear is not None:
            placer.matrix(f"{stem}.{getattr(names, role)}", role, linear)
    if feed_forward.xielu:
        numbers = feed_forward.xielu
        for role, value in (
            ("alpha_p", numbers.positive),
            ("alpha_n", numbers.negative),
            ("beta", numbers.beta),
            ("eps", numbers.eps),
        ):
            placer.vector(f"{stem}.{names.xielu}.{role}", "", 1, shape=(), shift=value)


def _place_experts(placer: Placer, stem: str, experts: Experts, family: Family) -> None:
    names = family.names
    placer.matrix(
        f"{stem}.{names.router}", "router", experts.router, is_dense=family.has_dense_router
    )
    if family.selection_bias:
        placer.vector(
            f"{stem}.{family.selection_bias}",
            experts.selection_bias,
            experts.count,
            shift=ABOVE_NOTHING if experts.groups > 1 else 0.0,
            is_wide=True,
        )
    modules = {"gate": "gate_proj", "up": names.experts_up, "down": names.experts_down}
    for role, matrix, part in _expert_parts(experts):
        path = f"{stem}.{names.experts}.{modules[role]}"
        _place_expert_matrix(placer, path, experts, matrix, part)
    for path, linear in (
        (names.latent_down, experts.latent_down),
        (names.latent_up, experts.latent_up),
    ):
        if linear is not None:
            placer.matrix(f"{stem}.{path}", "", linear)
    if experts.shared is None:
        return
    _place_shared(placer, f"{stem}.{names.shared}", experts.shared, names)
    if experts.shared_gate:
        placer.matrix(f"{stem}.{names.shared_gate}", "", experts.shared_gate)


def _place_shared(placer: Placer, stem: str, shared: FeedForward, names: Names) -> None:
    placer.matrix(f"{stem}.{names.shared_down}", "", shared.down)
    above = [linear for linear in (shared.gate, shared.up) if linear is not None]
    if names.shared_gate_up:
        placer.joined(f"{stem}.{names.shared_gate_up}", above)
        return
    for role, linear in (("gate", shared.gate), ("up", shared.up)):
        if linear is not None:
            placer.matrix(f"{stem}.{role}_proj", "", linear)


def _expert_parts(experts: Experts) -> list[tuple[str, ExpertMatrix, tuple[int, int]]]:
    """(role, matrix, which of how many equal parts of its rows)."""
    down = ("down", experts.down, (0, 1))
    if experts.activation != "swiglu":
        return [("up", experts.up, (0, 1)), down]
    if experts.gate is None:
        return [("gate", experts.up, (0, 2)), ("up", experts.up, (1, 2)), down]
    return [("gate", experts.gate, (0, 1)), ("up", experts.up, (0, 1)), down]


def _place_expert_matrix(
    placer: Placer, path: str, experts: Experts, matrix: ExpertMatrix, part: tuple[int, int]
) -> None:
    which, parts = part
    rows, count = matrix.rows // parts, experts.count
    runs: tuple[Run, ...] = ()
    if parts > 1:
        first = which * rows
        runs = tuple(Run(one * matrix.rows + first, one * rows, rows) for one in range(count))
    linear = Linear(weight=matrix.weight, rows=count * rows, columns=matrix.columns)
    placer.stack(path, linear, (count, rows), runs=runs)
    if matrix.bias:
        placer.vector(f"{path}.bias", matrix.bias, count * rows, shape=(count, rows), runs=runs)


def _place_norms(placer: Placer, stem: str, block: BlockShape, family: Family) -> None:
    names = family.names
    for name, norm in (
        (names.attention_norm, block.attention_norm),
        (names.post_attention_norm, block.post_attention_norm),
        (names.feed_forward_norm, block.feed_forward_norm),
        (names.post_feed_forward_norm, block.post_feed_forward_norm),
        (names.after_attention_norm, block.after_attention_norm),
        (names.second_after_norm, block.second_after_norm),
        (names.after_feed_forward_norm, block.after_feed_forward_norm),
    ):
        if name:
            placer.norm(f"{stem}.{name}", norm)
