"""Gives every tensor of a vision tower its place in `weights.bin`, and says what the tower will take.

Pure, from the header alone. On the CPU matrices of half-precision numbers stay that: they are widened
one after the other while a run goes on, so that a tower takes no more memory than its file.
"""

from __future__ import annotations

from converters.artifact import CodedTable
from converters.gguf import TensorInfo
from converters.projectors.tower import VisionShape
from converters.targets.onnx.layout import Layout, Matrix
from converters.targets.onnx.pieces import NUMBER_BITS, Number
from converters.targets.onnx.placer import Placer

# MLAS keeps a packed copy of codes: beside them an fp32 scale and block sum for each block.
_PACKED_BYTES_PER_BLOCK = 8
# What the runtime's arena takes for a number of bytes: measured with SigLIP's sizes.
_ARENA_SHARE = 1.6
# A tower looks no ids up.
_NO_TABLE = CodedTable(rows=0, columns=0, bits=32, codes_offset=0)


def plan_tower(
    tower: VisionShape, tensors: dict[str, TensorInfo], *, number: Number = "float32"
) -> Layout:
    """Raises Unsupported for a type that it cannot express."""
    placer = Placer(tensors, precise=False, number=number, keeps_halves=number == "float32")
    placer.matrices_of(tower.linears())
    for norm in tower.norms():
        placer.norm(norm)
    for name in tower.vectors():
        placer.array(name, (tensors[name].elements,))
    for step in tower.turned():
        placer.array(step.weight, (step.columns, step.rows))
    if tower.places:
        placer.array(tower.places.table, (tower.places.rows, tower.embedding_length))
    return placer.finish(_NO_TABLE)


def resident_bytes(layout: Layout) -> int:
    """Plain numbers are read where the file is mapped; codes are packed beside it."""
    if layout.number == "float16":
        return layout.weights_bytes
    codes = (each for each in layout.matrices.values() if each.form.kind not in NUMBER_BITS)
    return layout.weights_bytes + sum(map(_packed_bytes, codes))


def _packed_bytes(matrix: Matrix) -> int:
    weights = matrix.rows * matrix.columns
    blocks = weights // matrix.form.block
    return weights * matrix.form.bits // 8 + blocks * _PACKED_BYTES_PER_BLOCK


def run_bytes(tower: VisionShape, layout: Layout) -> int:
    """What the largest run takes: the stream and its norm, query, key, value, what attention gives and
    the widest layer twice, and the largest matrix widened.
    """
    size = 4 if layout.number == "float32" else 2
    positions = tower.most_tiles * (tower.most_patches + bool(tower.class_token))
    inner = max(block.feed_forward.up.rows for block in tower.blocks)
    numbers = 6 * positions * tower.embedding_length
    numbers += max(2 * positions * inner, _window_numbers(tower))
    given = 2 * tower.most_tiles * tower.most_patches * tower.patches[0].columns
    matrices = layout.matrices.values()
    halves = (each for each in matrices if each.form.kind in NUMBER_BITS)
    widened = max((4 * each.rows * each.columns for each in halves), default=0)
    counted = size * numbers + 4 * given + widened
    return int(_ARENA_SHARE * counted)


def _window_numbers(tower: VisionShape) -> int:
    """Query, key, value and what attention gives once more, and the scores; while they are there, nothing
    is fed forward. Windows that an image cuts off are filled up, by a quarter as a rule.
    """
    windowed = [block.attention for block in tower.blocks if block.attention.is_windowed]
    if not windowed:
        return 0
    window = min((tower.form.window_size // tower.form.patch_size) ** 2, tower.most_patches)
    of_patch = 4 * tower.embedding_length + window * (1 + windowed[0].heads)
    return tower.most_patches * of_patch * 5 // 4
