"""From a projector's header to a plan: what becomes of every tensor, and how large the artifact will be.

Pure, as `converters.plan` is for models. What cannot be planned is refused by name.
"""

from __future__ import annotations

import re

import msgspec

from converters.errors import ConversionError, Unsupported
from converters.gguf import GgufFile
from converters.plan import RUNTIMES
from converters.projectors.form import has_tower, projector_form, projector_type
from converters.projectors.registry import describe_tower
from converters.projectors.tower import VisionShape
from converters.targets.mlx.layout import Layout as MlxLayout
from converters.targets.mlx.vision import plan_tower as plan_mlx_tower
from converters.targets.mlx.vision import run_bytes as mlx_run_bytes
from converters.targets.onnx import vision_placement as onnx_placement
from converters.targets.onnx.layout import Layout as OnnxLayout

# Of a projector file only ears may be left out; of a model's own file everything that is no tower.
_EARS = re.compile(r"^(a|mm\.a)\.")
_EYES = re.compile(r"^(v|mm)\.")
# What the graph and the description take: measured, rounded up.
_FIXED_BYTES = 64 << 10
_BYTES_PER_BLOCK = 24 << 10


class VisionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion. Sizes in bytes; `resident_bytes` by device are kept while the tower is loaded,
    `run_bytes` is what a run of the largest image takes beside. `skipped` are tensors left out by rule.
    """

    target: str
    tower: VisionShape
    layout: OnnxLayout | MlxLayout
    skipped: tuple[str, ...]
    artifact_bytes: int
    resident_bytes: dict[str, int]
    run_bytes: int


class VisionAssessment(msgspec.Struct, frozen=True):
    """As `converters.plan.Assessment`, for the tower in a file; empty where there is none.

    `memory` is what a loaded and running tower takes, in bytes.
    """

    projector_type: str = ""
    refusals: dict[str, str] = {}
    estimates: dict[str, int] = {}
    memory: dict[str, int] = {}


def plan_vision(file: GgufFile, target: str) -> VisionPlan:
    """Raises ConversionError."""
    tower = describe_tower(file)
    skipped = _left_out(file, tower)
    tensors = {tensor.name: tensor for tensor in projector_form(file).tensors}
    if target == "mlx":
        layout = plan_mlx_tower(tower, tensors)
        resident = {"metal": layout.weights_bytes, "cpu": layout.fp32_bytes}
        run_bytes = mlx_run_bytes(tower)
    else:
        number = "float16" if target == "onnx-cuda" else "float32"
        layout = onnx_placement.plan_tower(tower, tensors, number=number)
        device = "cuda" if target == "onnx-cuda" else "cpu"
        resident = {device: onnx_placement.resident_bytes(layout)}
        run_bytes = onnx_placement.run_bytes(tower, layout)
    return VisionPlan(
        target=target,
        tower=tower,
        layout=layout,
        skipped=skipped,
        artifact_bytes=layout.weights_bytes + _FIXED_BYTES + _BYTES_PER_BLOCK * len(tower.blocks),
        resident_bytes=resident,
        run_bytes=run_bytes,
    )


def _left_out(file: GgufFile, tower: VisionShape) -> tuple[str, ...]:
    """Names of the tensors skipped by rule. Raises Unsupported for one that has no place at all."""
    form = projector_form(file)
    used, is_projector = tower.tensor_names(), file.architecture == "clip"
    left = [tensor.name for tensor in form.tensors if tensor.name not in used]
    for name in left:
        is_other = _EARS.match(name) or not (is_projector or _EYES.match(name))
        if not is_other:
            kind = tower.form.projector
            raise Unsupported(f"tensor {name!r} has no place in {kind} as this build knows it")
    return (*tower.unused, *(left if is_projector else ()))


def assess_vision(file: GgufFile) -> VisionAssessment:
    """Plans the tower for every runtime."""
    if not has_tower(file):
        return VisionAssessment()
    found = VisionAssessment(_kind(file), {}, {}, {})
    for target, runtime in RUNTIMES.items():
        try:
            planned = plan_vision(file, target)
        except ConversionError as error:
            found.refusals[runtime] = str(error)
        else:
            found.estimates[runtime] = planned.artifact_bytes
            resident = max(planned.resident_bytes.values())
            found.memory[runtime] = resident + planned.run_bytes
    return found


def _kind(file: GgufFile) -> str:
    """Empty where the file does not add up: planning it says why."""
    try:
        return projector_type(projector_form(file))
    except ConversionError:
        return ""
