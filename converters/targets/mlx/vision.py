"""Vision towers on MLX: where their weights will lie, how the tower is described, and writing both.

`config.json` is a description of our own, read by `backends.mlx.tower_form`: modules are named by their
tensors' stems, and a bias without an array is not there. Matrices keep their codes, or are fp16; norms,
biases and tables that the file has in fp32 stay that.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

from converters.architectures.parts import Linear, Norm
from converters.artifact import MLX_CONFIG_FILE, MLX_WEIGHTS_FILE, TensorRecord
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.output_file import new_file
from converters.parallel import one_by_one
from converters.projectors.tower import (
    Bend,
    Group,
    Perceptron,
    Pool,
    Shuffle,
    Step,
    StepNorm,
    Turned,
    VisionAttention,
    VisionBlock,
    VisionShape,
)
from converters.targets.mlx.forms import DENSE, FLOAT_TYPES, Form, Number, form_of
from converters.targets.mlx.layout import Layout, Matrix, Run, Vector
from converters.targets.mlx.placer import MAX_WEIGHTS_BYTES, arrays_of
from converters.targets.mlx.safetensors import Array, place
from converters.targets.mlx.weights import WeightsWriter
from converters.tensor_reader import TensorReader

MODEL_TYPE = "hearth_vision"
_DTYPES = {"F16": "float16", "F32": "float32"}
# Of the scores of one piece of attention, and copies of the stream that a block holds: see the runtime.
_SCORE_BYTES = 64 << 20
_STREAMS = 8


def plan_tower(tower: VisionShape, tensors: dict[str, TensorInfo]) -> Layout:
    """Raises Unsupported."""
    types = {tensors[linear.weight].type_name for linear in tower.linears()}
    parts = _Parts(tensors, "F32" if types == {"F32"} else "F16")
    for kernel in tower.patches:
        parts.table(f"{kernel.stem}.weight", kernel.weight, (kernel.rows, kernel.columns))
        parts.vector(f"{kernel.stem}.bias", kernel.bias)
    for linear in tower.linears():
        if linear not in tower.patches:
            parts.matrix(linear)
            parts.vector(f"{linear.stem}.bias", linear.bias)
    for norm in tower.norms():
        parts.vector(f"{_stem(norm)}.weight", norm.weight)
        parts.vector(f"{_stem(norm)}.bias", norm.bias)
    for step in tower.turned():
        parts.table(step.weight, step.weight, (step.columns, step.rows))
    if tower.places:
        shape = (tower.places.rows, tower.embedding_length)
        parts.table(tower.places.table, tower.places.table, shape)
    for name in tower.vectors():
        parts.vector(name, name)
    return parts.finish()


def run_bytes(tower: VisionShape) -> int:
    """What a run of the largest image takes beside the weights, in fp32."""
    wide = max(block.feed_forward.up.rows for block in tower.blocks)
    numbers = _STREAMS * tower.embedding_length + 3 * wide + tower.patches[0].columns
    return 4 * tower.most_tiles * tower.most_patches * numbers + 2 * _SCORE_BYTES


class _Parts:
    """Collects what the tower is made of; `finish` lays it out."""

    def __init__(self, tensors: dict[str, TensorInfo], number: Number) -> None:
        self._tensors = tensors
        self._number: Number = number
        self._matrices: list[Matrix] = []
        self._vectors: list[Vector] = []

    def matrix(self, linear: Linear) -> None:
        form = form_of(self._tensors[linear.weight])
        self._add(linear.stem, linear.weight, (linear.rows, linear.columns), form)

    def table(self, name: str, tensor: str, shape: tuple[int, int]) -> None:
        """A matrix that has no codes, whatever the file has."""
        if self._tensors[tensor].type_name == "F32":
            self._wide(name, tensor, shape)
        else:
            self._add(name.removesuffix(".weight"), tensor, shape, DENSE, name)

    def vector(self, name: str, tensor: str) -> None:
        """Nothing where there is no `tensor`."""
        if not tensor:
            return
        if self._tensors[tensor].type_name not in FLOAT_TYPES:
            found = self._tensors[tensor].type_name
            raise Unsupported(f"tensor {tensor!r}: a vector of type {found}")
        self._wide(name, tensor, (self._tensors[tensor].elements,))

    def _wide(self, name: str, tensor: str, shape: tuple[int, ...]) -> None:
        info = self._tensors[tensor]
        self._vectors.append(
            Vector(
                array=Array(name, "F32", shape),
                length=info.elements,
                tensor=info,
                runs=(Run(0, 0, info.elements),),
            )
        )

    def _add(
        self, path: str, tensor: str, shape: tuple[int, int], form: Form, name: str = ""
    ) -> None:
        rows, columns = shape
        arrays = arrays_of(path, form, (rows,), columns, self._number)
        if name:
            arrays = {"weight": Array(name, self._number, shape)}
        self._matrices.append(
            Matrix(
                path=path,
                tensor=self._tensors[tensor],
                rows=rows,
                columns=columns,
                form=form,
                arrays=arrays,
                runs=(Run(0, 0, rows),),
            )
        )

    def finish(self) -> Layout:
        arrays = {vector.array.name: vector.array for vector in self._vectors}
        for matrix in self._matrices:
            arrays |= {array.name: array for array in matrix.arrays.values()}
        size = sum(array.nbytes for array in arrays.values())
        if size > MAX_WEIGHTS_BYTES:
            raise Unsupported(f"the weights would be larger than {MAX_WEIGHTS_BYTES} bytes")
        placed, header = place(arrays.values())
        for matrix in self._matrices:
            for role, array in matrix.arrays.items():
                matrix.arrays[role] = placed[array.name]
        return Layout(
            matrices=tuple(self._matrices),
            vectors=tuple(_placed(vector, placed) for vector in self._vectors),
            number=self._number,
            header=header,
            weights_bytes=len(header) + size,
            context_length=0,
            cached_numbers=0,
        )


def _placed(vector: Vector, placed: dict[str, Array]) -> Vector:
    return Vector(
        array=placed[vector.array.name],
        length=vector.length,
        tensor=vector.tensor,
        runs=vector.runs,
    )


def write_tower(
    tower: VisionShape,
    layout: Layout,
    reader: TensorReader,
    staging: pathlib.Path,
    advance: Callable[[int], None],
) -> list[TensorRecord]:
    """The artifact's files but `vision.json`; gives what became of each tensor."""
    config = json.dumps(_config(tower, layout), indent=1)
    (staging / MLX_CONFIG_FILE).write_text(config, encoding="utf-8")
    with new_file(staging / MLX_WEIGHTS_FILE) as target:
        return WeightsWriter(layout, reader, target).write(one_by_one, advance)


# ---- the description ----


def _config(tower: VisionShape, layout: Layout) -> dict[str, object]:
    return {
        "model_type": MODEL_TYPE,
        "torch_dtype": _DTYPES[layout.number],
        "patches": [kernel.stem for kernel in tower.patches],
        "class_token": tower.class_token,
        "places": tower.places.table if tower.places else "",
        "has_mixed_places": bool(tower.places and tower.places.is_interpolated),
        "rotation": tower.rotation,
        "first_norm": _norm(tower.first_norm, tower.epsilon),
        "blocks": [_block(block, tower.epsilon) for block in tower.blocks],
        "last_norm": _norm(tower.last_norm, tower.epsilon),
        "steps": [_step(step) for step in tower.steps],
        "taps": [
            {"block": tap.block, "steps": [_step(step) for step in tap.steps]} for tap in tower.taps
        ],
        "row_break": tower.row_break,
        "quantization": {
            matrix.path: {
                "group_size": matrix.form.group,
                "bits": matrix.form.bits,
                "mode": matrix.form.mode,
            }
            for matrix in layout.matrices
            if matrix.form.mode
        },
    }


def _stem(norm: Norm) -> str:
    return norm.weight.removesuffix(".weight")


def _norm(norm: Norm | None, epsilon: float) -> dict[str, object] | None:
    if norm is None:
        return None
    return {"path": _stem(norm), "epsilon": epsilon, "is_centered": norm.is_centered}


def _block(block: VisionBlock, epsilon: float) -> dict[str, object]:
    return {
        "attention_norm": _norm(block.attention_norm, epsilon),
        "attention": _attention(block.attention, epsilon),
        "attention_scale": block.attention_scale,
        "feed_forward_norm": _norm(block.feed_forward_norm, epsilon),
        "feed_forward": _perceptron(block.feed_forward),
        "feed_forward_scale": block.feed_forward_scale,
    }


def _attention(attention: VisionAttention, epsilon: float) -> dict[str, object]:
    joined = [attention.packed] if attention.packed else []
    apart = [attention.query, attention.key, attention.value]
    return {
        "heads": attention.heads,
        "inputs": [linear.stem for linear in (joined or apart) if linear],
        "output": attention.output.stem,
        "query_norm": _norm(attention.query_norm, epsilon),
        "key_norm": _norm(attention.key_norm, epsilon),
        "has_norm_per_head": attention.has_norm_per_head,
        "is_windowed": attention.is_windowed,
    }


def _perceptron(network: Perceptron) -> dict[str, object]:
    return {
        "activation": network.activation,
        "gate": network.gate.stem if network.gate else "",
        "up": network.up.stem,
        "down": network.down.stem,
    }


def _step(step: Step) -> dict[str, object]:
    match step:
        case Pool() | Shuffle():
            kind = "pool" if isinstance(step, Pool) else "shuffle"
            return {"kind": kind, "grid": step.grid, "side": step.side}
        case Group():
            return {"kind": "group", "count": step.count, "is_interleaved": step.is_interleaved}
        case Bend():
            return {"kind": "bend", "activation": step.activation}
        case StepNorm():
            return {"kind": "norm", "norm": _norm(step.norm, step.epsilon)}
        case Turned():
            return {"kind": "turned", "path": step.weight}
        case Linear():
            return {"kind": "linear", "path": step.stem}
