"""From a `Load` to an engine: which parts, how large. Everything is checked before it is built."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from backends.onnx.binding import BoundGraph, key_value_planes
from backends.onnx.embedding import EmbeddingTable
from backends.onnx.engine import OnnxEngine
from backends.onnx.rows import KeyValueRows
from backends.onnx.session import open_session
from backends.types import EngineCapabilities, EngineError, Load
from converters.artifact import (
    WEIGHTS_FILE,
    Artifact,
    ArtifactError,
    OnnxGraph,
    read_artifact,
)

# Fewer positions than this are no context that anything can be answered in.
MIN_CONTEXT = 16


def load_engine(load: Load) -> OnnxEngine:
    """Raises EngineError: "unsupported", "load" or "memory", each with what a user must know."""
    folder = pathlib.Path(load.artifact)
    artifact, onnx = _checked(load, folder)
    rows = _make_rows(load, artifact, onnx)
    session = open_session(folder, artifact, threads=load.threads, precise=load.precise)
    graph = BoundGraph(session, artifact, rows)
    embedding = EmbeddingTable(folder / WEIGHTS_FILE, onnx.embedding, onnx.embedding_scale)
    capabilities = EngineCapabilities(
        context_length=rows.capacity,
        rows=rows.count,
        vocabulary=artifact.vocabulary,
        # Integer activations make a row's numbers independent of its neighbours; fp32 sums do not.
        reproducible_batches=not (load.precise or artifact.precise),
    )
    return OnnxEngine(graph=graph, embedding=embedding, rows=rows, capabilities=capabilities)


def _checked(load: Load, folder: pathlib.Path) -> tuple[Artifact, OnnxGraph]:
    if load.device != "cpu":
        raise EngineError("unsupported", f"this build runs ONNX models on cpu, not {load.device}")
    if load.adapters:
        raise EngineError("unsupported", "adapters are not supported on ONNX Runtime yet")
    if load.rows < 1 or load.context_length < 1:
        raise EngineError("invalid", "rows and context_length must be at least 1")
    try:
        artifact = read_artifact(folder)
    except ArtifactError as error:
        raise EngineError("load", str(error)) from error
    if artifact.onnx is None or not (folder / WEIGHTS_FILE).is_file():
        raise EngineError("load", f"{folder.name}: not an artifact for ONNX Runtime")
    if not artifact.causal:
        raise EngineError("unsupported", "encoder models are not supported on ONNX Runtime yet")
    return artifact, artifact.onnx


def _make_rows(load: Load, artifact: Artifact, onnx: OnnxGraph) -> KeyValueRows:
    """Rows of the wanted context, cut to what the model was trained for and the budget holds."""
    dtype = np.dtype(onnx.key_value_dtype)
    planes = key_value_planes(artifact)
    position_bytes = sum(plane.heads * plane.size for plane in planes) * dtype.itemsize
    budget_bytes = load.kv_bytes or available_memory_bytes() // 2
    wanted = min(load.context_length, artifact.context_length or load.context_length)
    capacity = min(wanted, budget_bytes // position_bytes)
    if capacity < min(wanted, MIN_CONTEXT):
        raise EngineError(
            "memory",
            f"a KV cache of {budget_bytes} bytes holds {capacity} tokens of this model, which is "
            "too few to answer in",
        )
    return KeyValueRows(
        planes, rows=load.rows, capacity=capacity, dtype=dtype, budget_bytes=budget_bytes
    )


def available_memory_bytes() -> int:
    """What the system could give without swapping; half of all memory where it does not say."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
