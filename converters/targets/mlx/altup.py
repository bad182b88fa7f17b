"""Where the tensors of several residual streams go on MLX, and keys and values that no block reads."""

from __future__ import annotations

from msgspec.structs import replace

from converters.architectures.altup import AltUp, BlockAltUp
from converters.architectures.mixers import Attention, Reading
from converters.architectures.model import ModelShape
from converters.architectures.parts import Linear
from converters.targets.mlx.layout import Run
from converters.targets.mlx.models.names import Names
from converters.targets.mlx.placer import Placer


def place_altup(placer: Placer, model: ModelShape, altup: AltUp, names: Names) -> None:
    """Of the model and of all its blocks."""
    root, width = names.embedding.rpartition(".")[0], model.embedding_length
    table = f"{root}.embed_tokens_per_layer"
    placer.matrix(table, "", altup.table, rows=model.vocabulary)
    placer.matrix(f"{root}.per_layer_model_projection", "", altup.projection)
    placer.norm(f"{root}.per_layer_projection_norm", altup.input_norm)
    gather = replace(altup.spread, weight=altup.gather)
    for path, stack in (("altup_projections", altup.spread), ("altup_unembed_projections", gather)):
        for place in range(altup.streams - 1):
            runs = (Run(place * width, 0, width),)
            placer.stack(f"{root}.{path}.{place}", stack, (width,), runs=runs)
    for index, block in enumerate(model.blocks):
        stem = names.block.format(index)
        if block.altup:
            _place_block(placer, stem, block.altup, width)
        if isinstance(block.mixer, Attention) and block.mixer.reading:
            _place_unread(placer, stem, block.mixer.reading, model, names)


def _place_block(placer: Placer, stem: str, altup: BlockAltUp, width: int) -> None:
    """The module computes with the coefficients themselves, so they are dense whatever they were."""
    for path, small in (
        ("modality_router", altup.router),
        ("prediction_coefs", altup.predict),
        ("correction_coefs", altup.correct),
    ):
        placer.matrix(f"{stem}.altup.{path}", "", small, is_dense=True)
    placer.norm(f"{stem}.altup.router_norm", altup.router_norm)
    placer.vector(f"{stem}.altup.correct_output_scale", altup.scale, width)
    for path, linear in (
        ("laurel.linear_left", altup.left),
        ("laurel.linear_right", altup.right),
        ("per_layer_input_gate", altup.own_gate),
        ("per_layer_projection", altup.own_output),
    ):
        placer.matrix(f"{stem}.{path}", "", linear)
    placer.norm(f"{stem}.laurel.post_laurel_norm", altup.low_rank_norm)
    placer.norm(f"{stem}.post_per_layer_input_norm", altup.own_norm)


def _place_unread(
    placer: Placer, stem: str, reading: Reading, model: ModelShape, names: Names
) -> None:
    """The module has them in every block; where the file has none, those that are read stand there."""
    owner = model.blocks[reading.block].mixer
    assert isinstance(owner, Attention)
    for role in ("key", "value"):
        linear: Linear = getattr(reading, role) or getattr(owner, role)
        placer.matrix(f"{stem}.{getattr(names, role)}", role, linear)
    placer.norm(f"{stem}.{names.key_norm}", reading.key_norm or owner.key_norm)
