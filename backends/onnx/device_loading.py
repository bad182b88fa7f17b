"""From a `Load` to an engine on a device: what fits is planned, what it computes is checked."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import numpy as np
import onnxruntime as ort

from backends.engine.contract import EngineCapabilities
from backends.engine.pace import Pace
from backends.engine.speculation import MOST_GUESSES
from backends.onnx.adapter import load_adapter
from backends.onnx.bidirectional import BidirectionalRuns
from backends.onnx.binding import BoundGraph, key_value_planes
from backends.onnx.capture_trial import not_captured, obstacle_to_capture, try_capture
from backends.onnx.device import Device
from backends.onnx.device_plan import DevicePlan, check_room, plan_device
from backends.onnx.device_planes import DevicePlanes
from backends.onnx.device_session import open_device_session
from backends.onnx.embedding import input_table
from backends.onnx.encoder import OnnxEncoder, make_encoder
from backends.onnx.engine import OnnxEngine
from backends.onnx.images import ImageInputs
from backends.onnx.prefix_cache import PrefixCache
from backends.onnx.row_states import DeviceStates
from backends.onnx.rows import KeyValueRows
from backends.onnx.self_test import Reference, check_device, check_encoder
from backends.types import EngineError, Load
from converters.artifact import Artifact, OnnxGraph

logger = logging.getLogger(__name__)


def is_encoder(artifact: Artifact) -> bool:
    return bool(artifact.pooling) or not artifact.causal


def load_on_device(
    load: Load, folder: pathlib.Path, artifact: Artifact, onnx: OnnxGraph, device: Device
) -> OnnxEngine | OnnxEncoder:
    """Everything lies on the device, and is checked against the CPU. Raises EngineError."""
    kind = _load_encoder if is_encoder(artifact) else _load_decoder
    return kind(load, folder, artifact, onnx, device)


def _load_encoder(
    load: Load, folder: pathlib.Path, artifact: Artifact, onnx: OnnxGraph, device: Device
) -> OnnxEncoder:
    adapter = load_adapter(load.adapters, artifact, folder)
    weight_bytes = _weight_bytes(artifact, folder, load)
    check_room(device.memory()[0], weight_bytes=weight_bytes)

    def made(session: ort.InferenceSession, name: str = "cpu", size: int = 0) -> OnnxEncoder:
        return make_encoder(session, load, folder, artifact, onnx, device=name, device_bytes=size)

    opened = open_device_session(
        device,
        folder,
        artifact,
        adapter=adapter,
        threads=load.threads,
        obstacle="texts are of any length, so no two runs need be of one shape",
    )
    encoder = made(opened.session, device.name, weight_bytes)
    reference = Reference(artifact, folder, load.cache_folder, adapter, load.adapters)
    with _as_the_devices_fault():
        apart = check_encoder(encoder, reference, made)
    logger.info("%s agrees with the CPU: vectors are %.5f apart at most", device.name, apart)
    return encoder


def _load_decoder(
    load: Load, folder: pathlib.Path, artifact: Artifact, onnx: OnnxGraph, device: Device
) -> OnnxEngine:
    adapter = load_adapter(load.adapters, artifact, folder)
    rows, plan = _device_rows(load, folder, artifact, onnx, device)
    reference = Reference(artifact, folder, load.cache_folder, adapter, load.adapters)
    opened = open_device_session(
        device,
        folder,
        artifact,
        adapter=adapter,
        threads=load.threads,
        obstacle=obstacle_to_capture(reference.cache),
    )
    graph = BoundGraph(
        opened.session,
        artifact,
        rows,
        most_rows=plan.active,
        most_scores=max(plan.active, MOST_GUESSES + 1),
        device=device,
        may_capture=not opened.obstacle,
    )
    embedding = input_table(folder, onnx)
    open_runs = BidirectionalRuns(load, artifact, rows, is_on_device=True)
    images = ImageInputs(artifact, embedding, open_runs, capacity=rows.capacity, word=device.word)
    with _as_the_devices_fault():
        apart = check_device(graph, rows, embedding, artifact, reference)
    logger.info("%s agrees with the CPU to %.2f %% of the logits' spread", device.name, 100 * apart)
    if opened.obstacle:
        steps = not_captured(opened.obstacle)
    else:
        steps = try_capture(graph, rows, embedding, artifact.vocabulary, folder=reference.cache)
    return OnnxEngine(
        graph=graph,
        embedding=embedding,
        images=images,
        rows=rows,
        cache=PrefixCache(rows, max_idle=plan.idle),
        pace=Pace(),
        capabilities=EngineCapabilities(
            context_length=rows.capacity,
            rows=plan.active,
            vocabulary=artifact.vocabulary,
            grammar=True,
            embed=graph.has_hidden,
            adapters=True,
            image_width=images.width,
            device=device.name,
            device_bytes=_weight_bytes(artifact, folder, load) + _rows_bytes(rows, onnx, plan),
            steps=steps,
        ),
    )


@contextlib.contextmanager
def _as_the_devices_fault() -> Iterator[None]:
    """What fails in the self-test would fail in every run; another device may know the model's nodes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, EngineError) and error.code == "device":
            raise
        first = str(error).strip().partition("\n")[0]
        raise EngineError("device", f"the device could not run its self-test: {first}") from error


def _weight_bytes(artifact: Artifact, folder: pathlib.Path, load: Load) -> int:
    """Of the artifact and its adapters, as they lie on the device."""
    adapters = sum(
        path.stat().st_size for each in load.adapters for path in pathlib.Path(each).glob("*.bin")
    )
    return artifact.resident_bytes.get("cuda", artifact.file_bytes) + adapters


def _device_rows(
    load: Load, folder: pathlib.Path, artifact: Artifact, onnx: OnnxGraph, device: Device
) -> tuple[KeyValueRows, DevicePlan]:
    """Rows of the wanted context, or the model's own; a device that has no room for one refuses."""
    dtype, planes = np.dtype(onnx.key_value_dtype), key_value_planes(artifact)
    capacity = min(load.context_length, artifact.context_length or load.context_length)
    position_bytes = max(1, sum(plane.heads * plane.size for plane in planes) * dtype.itemsize)
    plan = plan_device(
        device.memory()[0],
        weight_bytes=_weight_bytes(artifact, folder, load),
        row_bytes=capacity * position_bytes,
        planes=len(planes),
        rows=load.rows,
        most_idle=idle_rows(load.rows),
        state_bytes=sum(state.nbytes for state in onnx.states),
    )
    rows = KeyValueRows(
        planes,
        rows=plan.rows,
        capacity=capacity,
        dtype=dtype,
        budget_bytes=plan.rows * capacity * position_bytes,
        store=DevicePlanes(planes, device, rows=plan.rows, capacity=capacity, dtype=dtype),
        state_store=DeviceStates(onnx.states, device, rows=plan.rows, most_rows=plan.active),
    )
    return rows, plan


def _rows_bytes(rows: KeyValueRows, onnx: OnnxGraph, plan: DevicePlan) -> int:
    states = sum(state.nbytes for state in onnx.states) * (plan.rows + plan.active)
    return plan.rows * rows.capacity * rows.position_bytes + states


def idle_rows(active: int) -> int:
    """Places for rows kept of finished requests. They cost address space only, until used."""
    return 2 * active + 6
