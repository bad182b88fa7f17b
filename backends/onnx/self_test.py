"""Whether a device computes what the CPU computes from the same artifact, tried once at every load.

The CPU's numbers are made once per artifact and runtime, in one slow pass without any packing, and
kept in the cache folder. A device that differs is not used: its answers could not be trusted.
"""

from __future__ import annotations

import os
import pathlib
import tempfile

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.onnx.binding import BoundGraph, key_value_planes
from backends.onnx.embedding import EmbeddingTable
from backends.onnx.rows import KeyValueRows
from backends.onnx.session import open_reference_session
from backends.types import EngineError
from converters.artifact import Artifact

PREFILLED, DECODED = 6, 2
# fp16 sums differ by their order, some hundredths of the logits' spread; other numbers by all of it.
TOLERANCE = 0.1
_FILE = "self_test.npy"


def check_device(
    graph: BoundGraph,
    rows: KeyValueRows,
    embedding: EmbeddingTable,
    artifact: Artifact,
    folder: pathlib.Path,
    cache_folder: str,
) -> float:
    """How far apart the logits are, as a part of their spread. Raises EngineError("device")."""
    expected = _reference(artifact, embedding, folder, cache_folder)
    found = logits_of(graph, rows, embedding, artifact.vocabulary)
    return compare(found, expected)


def compare(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    if not np.isfinite(found).all():
        raise EngineError("device", "the device's self-test gave numbers that are not finite")
    spread = float(np.sqrt(np.square(expected - expected.mean(axis=1, keepdims=True)).mean()))
    apart = float(np.sqrt(np.square(found - expected).mean())) / max(spread, 1e-6)
    if not apart < TOLERANCE:
        raise EngineError(
            "device",
            f"the device's self-test differs from the CPU by {apart:.0%} of the logits' spread",
        )
    return apart


def logits_of(
    graph: BoundGraph, rows: KeyValueRows, embedding: EmbeddingTable, vocabulary: int
) -> NDArray[np.float32]:
    """[1 + DECODED, vocabulary]: after a few ids prefilled together, then decoded one by one."""
    ids = [(7 * place + 3) % vocabulary for place in range(PREFILLED + DECODED)]
    row = rows.take(len(ids))
    if row is None:
        raise EngineError("device", "the device has no row for its self-test")
    lines: list[NDArray[np.float32]] = []
    try:
        for begin, end in [(0, PREFILLED), *((n, n + 1) for n in range(PREFILLED, len(ids)))]:
            chunk = np.ascontiguousarray(embedding.lookup(ids[begin:end])[None])
            scores = graph.run(row.index, chunk, [end], [end - begin - 1])
            row.advance(end - begin)
            lines.append(np.array(scores.logits[0]))
    finally:
        rows.release(row)
    return np.stack(lines)


def _reference(
    artifact: Artifact, embedding: EmbeddingTable, folder: pathlib.Path, cache_folder: str
) -> NDArray[np.float32]:
    path = _path(artifact, cache_folder)
    shape = (1 + DECODED, artifact.vocabulary)
    if path is not None and path.is_file():
        try:
            kept = np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            kept = np.empty(0)
        if kept.shape == shape:
            numbers: NDArray[np.float32] = kept.astype(np.float32)
            return numbers
    logits = _on_cpu(artifact, embedding, folder)
    if path is not None:
        _keep(path, logits)
    return logits


def _path(artifact: Artifact, cache_folder: str) -> pathlib.Path | None:
    if not cache_folder:
        return None
    made = f"{artifact.source[:32]}-{artifact.variant}-{artifact.converter}"
    return pathlib.Path(cache_folder) / made / f"ort-{ort.__version__}" / _FILE


def _on_cpu(
    artifact: Artifact, embedding: EmbeddingTable, folder: pathlib.Path
) -> NDArray[np.float32]:
    assert artifact.onnx is not None
    length = PREFILLED + DECODED
    rows = KeyValueRows(
        key_value_planes(artifact),
        rows=1,
        capacity=length,
        dtype=np.dtype(artifact.onnx.key_value_dtype),
        budget_bytes=1 << 40,
    )
    graph = BoundGraph(open_reference_session(folder), artifact, rows, most_rows=1, most_scores=1)
    try:
        return logits_of(graph, rows, embedding, artifact.vocabulary)
    finally:
        graph.close()
        rows.close()


def _keep(path: pathlib.Path, logits: NDArray[np.float32]) -> None:
    """A cache: what cannot be written is made again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.save(file, logits, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        pathlib.Path(file.name).replace(path)
    except OSError:
        return
