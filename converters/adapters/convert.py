"""One adapter for one base: matched with it first, then written beside its artifact, never into it.

Nothing appears under the final name before all of it is on the disk. Raises ConversionError.
"""

from __future__ import annotations

import pathlib
from typing import BinaryIO

import msgspec
import onnx

from converters.adapters.lora import Lora, check_fit, of_use, read_lora
from converters.artifact import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS_FILE,
    ARTIFACT_FORMAT,
    CONVERTER_VERSION,
    GRAPH_FILE,
    MLX_ADAPTER_FILE,
    AdapterArtifact,
    read_adapter,
    structure_of,
)
from converters.description import write_description
from converters.errors import Unsupported
from converters.gguf import GgufFile, read_header
from converters.output_file import new_file
from converters.plan import Plan, plan
from converters.progress import Progress
from converters.staging import check_space, staged, sync_and_publish
from converters.targets.mlx import low_rank as mlx_low_rank
from converters.targets.mlx.layout import Layout as MlxLayout
from converters.targets.onnx import low_rank as onnx_low_rank
from converters.targets.onnx.rounding import Rounding
from converters.targets.onnx.write import check_graph, check_places, graph_of
from converters.tensor_reader import TensorReader

TARGETS = ("onnx-cpu", "onnx-cuda", "mlx")
_GRAPH_BYTES = 8 << 20
AdapterLayout = onnx_low_rank.AdapterLayout | mlx_low_rank.AdapterLayout


class AdapterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`source` and `base` are source ids; `base_folder` is the base's artifact for the target."""

    source: str
    base: str
    base_folder: pathlib.Path
    target: str
    final: pathlib.Path
    precise: bool = False


class AdapterPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Of one adapter over one base. `base` is the plan that the base's artifact was made by."""

    lora: Lora
    base: Plan
    layout: AdapterLayout


def plan_adapter(
    adapter: GgufFile, base: GgufFile, target: str, *, precise: bool = False
) -> AdapterPlan:
    """Pure, from two headers. Raises Unsupported, MalformedFile and its AdapterMismatch."""
    if target not in TARGETS:
        raise Unsupported(f"adapters for the target {target} are not supported yet")
    base_plan = plan(base, target, precise)
    lora = of_use(read_lora(adapter), base_plan.model)
    check_fit(lora, base_plan.model, base.architecture)
    if isinstance(base_plan.layout, MlxLayout):
        if base_plan.model.encoder:
            raise Unsupported("adapters of models that give vectors are not supported on MLX yet")
        layout = mlx_low_rank.plan_low_rank(lora, base_plan.layout)
    else:
        layout = onnx_low_rank.plan_low_rank(lora, base_plan.layout)
    return AdapterPlan(lora=lora, base=base_plan, layout=layout)


def match(adapter: BinaryIO, base: BinaryIO, target: str) -> None:
    """Raises ConversionError unless `convert_adapter` would begin to write."""
    plan_adapter(read_header(adapter), read_header(base), target)


def convert_adapter(
    adapter: BinaryIO, base: BinaryIO, request: AdapterRequest, progress: Progress
) -> int:
    """Bytes of the artifact; one that is there already is left as it is."""
    if request.final.exists():
        return read_adapter(request.final, request.base_folder).file_bytes
    progress.start("plan")
    planned = plan_adapter(
        read_header(adapter), read_header(base), request.target, precise=request.precise
    )
    check_space(request.final.parent, planned.layout.weights_bytes + _GRAPH_BYTES)
    with staged(request.final) as staging:
        progress.start("write", planned.layout.weights_bytes)
        rounding = _write(planned, request, TensorReader(adapter), staging, progress)
        described = _describe(planned, request, rounding)
        artifact_bytes = write_description(described, ADAPTER_FILE, staging)
        sync_and_publish(staging, request.final, artifact_bytes, progress)
    return artifact_bytes


def _write(
    planned: AdapterPlan,
    request: AdapterRequest,
    reader: TensorReader,
    staging: pathlib.Path,
    progress: Progress,
) -> Rounding:
    layout = planned.layout
    if isinstance(layout, mlx_low_rank.AdapterLayout):
        with new_file(staging / MLX_ADAPTER_FILE) as target:
            mlx_low_rank.write_low_rank(layout, reader, target, progress.advance)
        return Rounding()
    with new_file(staging / ADAPTER_WEIGHTS_FILE) as target:
        rounding = onnx_low_rank.write_low_rank(layout, reader, target, progress.advance)
    assert not isinstance(planned.base.layout, MlxLayout)
    adapted = msgspec.structs.replace(planned.base.layout, low_rank=layout.low_rank)
    graph = graph_of(planned.base.model, adapted)
    check_graph(graph)
    check_places(graph, onnx.load(request.base_folder / GRAPH_FILE, load_external_data=False))
    _check_used(graph, layout)
    (staging / GRAPH_FILE).write_bytes(graph.SerializeToString())
    return rounding


def _check_used(graph: onnx.ModelProto, layout: onnx_low_rank.AdapterLayout) -> None:
    """A failure here is a defect of ours: an array that no node reads would be dropped in silence."""
    read = {name for node in graph.graph.node for name in node.input}
    if unread := sorted(layout.arrays().keys() - read):
        raise RuntimeError(f"the graph does not read {unread[0]!r}")


def _describe(planned: AdapterPlan, request: AdapterRequest, rounding: Rounding) -> AdapterArtifact:
    layout = planned.layout
    is_mlx = isinstance(layout, mlx_low_rank.AdapterLayout)
    return AdapterArtifact(
        format=ARTIFACT_FORMAT,
        converter=CONVERTER_VERSION,
        source=request.source,
        base=request.base,
        variant=planned.base.variant,
        base_structure=structure_of(request.base_folder),
        rank=planned.lora.rank,
        targets=tuple(pair.target for pair in planned.lora.pairs),
        # On a CPU, ONNX Runtime packs a copy of each matrix beside the mapped one.
        resident_bytes=layout.weights_bytes * (2 if request.target == "onnx-cpu" else 1),
        arrays={} if is_mlx else layout.arrays(),
        max_error=rounding.largest,
        rms_error=rounding.rms,
    )
