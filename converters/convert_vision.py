"""One conversion of a vision tower, from an open GGUF to a vision artifact in its place.

As `converters.convert`: nothing appears under the final name before all of it is on the disk.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from converters.artifact import (
    ARTIFACT_FORMAT,
    CONVERTER_VERSION,
    GRAPH_FILE,
    TensorRecord,
)
from converters.description import write_description
from converters.gguf import read_header
from converters.parallel import RunInOrder, one_by_one
from converters.progress import Progress
from converters.staging import check_space, staged, sync_and_publish
from converters.targets.mlx.layout import Layout as MlxLayout
from converters.targets.mlx.vision import write_tower as write_mlx_tower
from converters.targets.onnx.weights import write_weights
from converters.tensor_reader import TensorReader
from converters.vision_artifact import VISION_FILE, VisionArtifact, read_vision, vision_folder
from converters.vision_plan import VisionPlan, plan_vision


class VisionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`source` is the source id that the artifact will carry; `final` the folder to make."""

    source: str
    target: str
    final: pathlib.Path


def convert_vision(
    file: BinaryIO, request: VisionRequest, progress: Progress, run: RunInOrder = one_by_one
) -> int:
    """Bytes of the artifact; one that is there already is left as it is. Raises ConversionError."""
    if request.final.exists():
        return read_vision(request.final).file_bytes
    progress.start("plan")
    planned = plan_vision(read_header(file), request.target)
    check_space(request.final.parent, planned.artifact_bytes)
    with staged(request.final) as staging:
        progress.start("write", planned.layout.weights_bytes)
        records = _write(planned, TensorReader(file), staging, run, progress.advance)
        described = _describe(planned, request, records)
        artifact_bytes = write_description(described, VISION_FILE, staging)
        progress.start("verify", artifact_bytes)
        _verify(planned, artifact_bytes, staging)
        sync_and_publish(staging, request.final, artifact_bytes, progress)
    return artifact_bytes


def _write(
    planned: VisionPlan,
    reader: TensorReader,
    staging: pathlib.Path,
    run: RunInOrder,
    advance: Callable[[int], None],
) -> list[TensorRecord]:
    layout = planned.layout
    if isinstance(layout, MlxLayout):
        return write_mlx_tower(planned.tower, layout, reader, staging, advance)
    # Imported only where a graph is written: onnx takes as long as a small model.
    from converters.targets.onnx.vision import tower_model

    graph = tower_model(planned.tower, layout)
    (staging / GRAPH_FILE).write_bytes(graph.SerializeToString())
    return write_weights(layout, reader, staging, run, advance)


def _describe(
    planned: VisionPlan, request: VisionRequest, records: list[TensorRecord]
) -> VisionArtifact:
    tower = planned.tower
    return VisionArtifact(
        format=ARTIFACT_FORMAT,
        converter=CONVERTER_VERSION,
        source=request.source,
        variant=vision_folder(request.target),
        name=tower.name,
        form=tower.form,
        width=tower.width,
        deepstack=len(tower.taps),
        inputs=tower.inputs,
        has_row_break=bool(tower.row_break),
        is_bidirectional=tower.is_bidirectional,
        block_count=len(tower.blocks),
        resident_bytes=planned.resident_bytes,
        run_bytes=planned.run_bytes,
        tensors=tuple(records),
        skipped_tensors=planned.skipped,
    )


def _verify(planned: VisionPlan, artifact_bytes: int, staging: pathlib.Path) -> None:
    """What is on the disk reads back as what was planned. A failure here is a defect of ours."""
    found = sum(path.stat().st_size for path in staging.iterdir())
    if read_vision(staging).file_bytes != artifact_bytes or found != artifact_bytes:
        raise RuntimeError(f"the artifact has {found} bytes instead of {artifact_bytes}")
    if not isinstance(planned.layout, MlxLayout):
        from converters.targets.onnx.write import verify

        verify(planned.layout, staging)
