"""From a `Load` to an engine: which parts, how large. Everything is checked before it is built."""

from __future__ import annotations

import pathlib

import numpy as np
import onnxruntime as ort

from backends.engine.contract import Engine, EngineCapabilities
from backends.engine.machine_memory import available_memory_bytes
from backends.engine.pace import Pace
from backends.engine.saved_prefixes import open_files
from backends.engine.speculation import MOST_GUESSES
from backends.onnx.adapter import load_adapter
from backends.onnx.bidirectional import BidirectionalRuns
from backends.onnx.binding import BoundGraph, key_value_planes
from backends.onnx.device import open_device
from backends.onnx.device_loading import idle_rows, is_encoder, load_on_device
from backends.onnx.embedding import input_table
from backends.onnx.encoder import make_encoder
from backends.onnx.engine import OnnxEngine
from backends.onnx.foreign_encoder import ForeignEncoder
from backends.onnx.images import ImageInputs
from backends.onnx.prefix_cache import PrefixCache
from backends.onnx.rows import KeyValueRows
from backends.onnx.saved_rows import SavedRows, form_of_rows
from backends.onnx.session import open_session, physical_cores
from backends.types import (
    EngineError,
    Load,
)
from converters.artifact import (
    WEIGHTS_FILE,
    Artifact,
    ArtifactError,
    ForeignGraph,
    OnnxGraph,
    read_artifact,
)

# Fewer positions than this are no context that anything can be answered in.
MIN_CONTEXT = 16


def load_engine(load: Load) -> Engine:
    """Raises EngineError: "unsupported", "load" or "memory", each with what a user must know."""
    folder = pathlib.Path(load.artifact)
    artifact = _checked(load, folder)
    if artifact.foreign is not None:
        return _load_foreign(load, folder, artifact, artifact.foreign)
    onnx = artifact.onnx
    if onnx is None or not (folder / WEIGHTS_FILE).is_file():
        raise EngineError("load", f"{folder.name}: not an artifact for ONNX Runtime")
    device = open_device(load.device)
    if device is not None:
        return load_on_device(load, folder, artifact, onnx, device)
    if is_encoder(artifact):
        session = _open_session(load, folder, artifact)
        return make_encoder(session, load, folder, artifact, onnx)
    return _load_decoder(load, folder, artifact, onnx)


def _load_foreign(
    load: Load, folder: pathlib.Path, artifact: Artifact, graph: ForeignGraph
) -> ForeignEncoder:
    if load.adapters:
        raise EngineError("unsupported", "adapters do not fit a graph that another program made")
    return ForeignEncoder(
        session=_open_session(load, folder, artifact),
        artifact=artifact,
        graph=graph,
        capabilities=EngineCapabilities(
            context_length=artifact.context_length,
            rows=1,
            vocabulary=artifact.vocabulary,
            generate=False,
            embed=True,
        ),
    )


def _load_decoder(
    load: Load, folder: pathlib.Path, artifact: Artifact, onnx: OnnxGraph
) -> OnnxEngine:
    rows, active = _make_rows(load, artifact, onnx)
    session = _open_session(load, folder, artifact)
    graph = BoundGraph(
        session, artifact, rows, most_rows=active, most_scores=max(active, MOST_GUESSES + 1)
    )
    embedding = input_table(folder, onnx)
    images = ImageInputs(
        artifact, embedding, BidirectionalRuns(load, artifact, rows), capacity=rows.capacity
    )
    capabilities = EngineCapabilities(
        context_length=rows.capacity,
        rows=active,
        vocabulary=artifact.vocabulary,
        grammar=True,
        embed=graph.has_hidden,
        adapters=True,
        image_width=images.width,
        # Integer activations make a row's numbers independent of its neighbours; fp32 sums do not.
        reproducible_batches=onnx.key_value_dtype == "float32"
        and not (load.precise or artifact.precise),
    )
    pace = Pace()
    saved = _saved_rows(load, artifact, rows, pace)
    cache = PrefixCache(rows, max_idle=idle_rows(active), saved=saved)
    return OnnxEngine(
        graph=graph,
        embedding=embedding,
        images=images,
        rows=rows,
        cache=cache,
        capabilities=capabilities,
        pace=pace,
    )


def _saved_rows(load: Load, artifact: Artifact, rows: KeyValueRows, pace: Pace) -> SavedRows | None:
    """None unless asked for."""
    if rows.states:
        return None
    form = form_of_rows(rows)
    files = open_files(
        load,
        artifact,
        context_length=rows.capacity,
        runtime=(ort.__version__, load.precise, load.threads or physical_cores()),
        knows=lambda one: one == form,
    )
    return None if files is None else SavedRows(rows, files, lambda: pace.seconds_per_id)


def _open_session(load: Load, folder: pathlib.Path, artifact: Artifact) -> ort.InferenceSession:
    adapter = load_adapter(load.adapters, artifact, folder)
    return open_session(
        folder, artifact, threads=load.threads, precise=load.precise, adapter=adapter
    )


def plan_rows(ceiling: int, row_bytes: int, budget_bytes: int) -> int:
    """Requests that may run at once: as many half-full rows as the budget holds, at least one."""
    return max(1, min(ceiling, 2 * budget_bytes // row_bytes))


def _checked(load: Load, folder: pathlib.Path) -> Artifact:
    if load.rows < 1 or load.context_length < 1:
        raise EngineError("invalid", "rows and context_length must be at least 1")
    try:
        return read_artifact(folder)
    except ArtifactError as error:
        raise EngineError("load", str(error)) from error


def _make_rows(load: Load, artifact: Artifact, onnx: OnnxGraph) -> tuple[KeyValueRows, int]:
    """Rows of the wanted context, cut to what the model was trained for and the budget holds.

    With them how many may be active at once; one more than those and the idle ones lets rows move.
    """
    dtype = np.dtype(onnx.key_value_dtype)
    planes = key_value_planes(artifact)
    position_bytes = max(1, sum(plane.heads * plane.size for plane in planes) * dtype.itemsize)
    budget_bytes = load.kv_bytes or available_memory_bytes() // 2
    wanted = min(load.context_length, artifact.context_length or load.context_length)
    states_bytes = artifact.states_bytes
    capacity = min(wanted, max(0, budget_bytes - states_bytes) // position_bytes)
    if capacity < min(wanted, MIN_CONTEXT):
        raise EngineError(
            "memory",
            f"a KV cache of {budget_bytes} bytes holds {capacity} tokens of this model, which is "
            "too few to answer in",
        )
    # Rows are planned half full, but states are whole however short a row is.
    active = plan_rows(load.rows, capacity * position_bytes + 2 * states_bytes, budget_bytes)
    budget_bytes = max(capacity * position_bytes, budget_bytes - active * states_bytes)
    count = active + idle_rows(active) + 1
    rows = KeyValueRows(
        planes,
        rows=count,
        capacity=capacity,
        dtype=dtype,
        budget_bytes=budget_bytes,
        states=onnx.states,
    )
    return rows, active
