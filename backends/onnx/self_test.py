"""Whether a device computes what the CPU computes from the same artifact, tried once at every load.

The CPU's numbers are made once per artifact, adapter and runtime, in one slow pass without any
packing, and kept in the cache folder. A device that differs is not used: its answers could not be
trusted.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.onnx.adapter import LoadedAdapter
from backends.onnx.binding import BoundGraph, key_value_planes
from backends.onnx.embedding import EmbeddingTable
from backends.onnx.encoder import OnnxEncoder
from backends.onnx.rows import KeyValueRows, Row
from backends.onnx.session import open_reference_session
from backends.types import EngineError
from converters.artifact import Artifact

# A row is prefilled, prefilled further and decoded; then it decodes beside a shorter one.
PREFILLED, CHUNKED, SECOND = 6, 3, 4
LINES = 5
_LENGTH = PREFILLED + CHUNKED + 2
# Padded beside each other, as texts of clients are.
TEXT_LENGTHS = (9, 3)
# fp16 sums differ by their order, some hundredths of the logits' spread; other numbers by all of it.
TOLERANCE = 0.1
# Of 1 - cosine: fp16 costs some ten-thousandths.
VECTOR_TOLERANCE = 0.01
_FILE = "self_test"

Numbers = NDArray[np.float32]


class Reference:
    """Where the CPU's numbers come from, and where they are kept."""

    def __init__(
        self,
        artifact: Artifact,
        folder: pathlib.Path,
        cache_folder: str,
        adapter: LoadedAdapter | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        """`adapters` are folders, of which `adapter` is the content."""
        self._artifact = artifact
        self._folder = folder
        self._adapter = adapter
        self.cache = trial_folder(artifact, cache_folder)
        self._file = _FILE + _suffix(adapters)

    def session(self) -> ort.InferenceSession:
        return open_reference_session(self._folder, self._adapter)

    def numbers(self, make: Callable[[ort.InferenceSession], Numbers], lines: int) -> Numbers:
        """What `make` gives of the reference session, now or when it was last asked for: [lines, ·]."""
        path = self.cache / f"{self._file}.npy" if self.cache else None
        kept = _kept(path) if path else None
        if kept is not None and len(kept) == lines:
            return kept
        made = make(self.session())
        if path is not None:
            _keep(path, made)
        return made


def trial_folder(artifact: Artifact, cache_folder: str) -> pathlib.Path | None:
    """What trials of this artifact with this runtime leave; None without a cache."""
    if not cache_folder:
        return None
    made = f"{artifact.source[:32]}-{artifact.variant}-{artifact.converter}"
    return pathlib.Path(cache_folder) / made / f"ort-{ort.__version__}"


def _suffix(adapters: Sequence[str]) -> str:
    if not adapters:
        return ""
    # An adapter's folder is named by its own digest and that of what it was made over.
    names = "/".join("/".join(pathlib.Path(path).parts[-2:]) for path in adapters)
    return "-" + hashlib.sha256(names.encode()).hexdigest()[:16]


# ---- decoders ----


def check_device(
    graph: BoundGraph,
    rows: KeyValueRows,
    embedding: EmbeddingTable,
    artifact: Artifact,
    reference: Reference,
) -> float:
    """How far apart the logits are, as a part of their spread. Raises EngineError("device")."""
    expected = reference.numbers(lambda session: _on_cpu(session, artifact, embedding), LINES)
    found = logits_of(graph, rows, embedding, artifact.vocabulary)
    return compare(found, expected[: len(found)])


def compare(found: Numbers, expected: Numbers) -> float:
    _check_finite(found, expected)
    spread = float(np.sqrt(np.square(expected - expected.mean(axis=1, keepdims=True)).mean()))
    apart = float(np.sqrt(np.square(found - expected).mean())) / max(spread, 1e-6)
    if not apart < TOLERANCE:
        raise EngineError(
            "device",
            f"the device's self-test differs from the CPU by {apart:.0%} of the logits' spread",
        )
    return apart


def _check_finite(found: Numbers, expected: Numbers) -> None:
    if found.shape != expected.shape:
        raise EngineError("device", "the device's self-test gave another number of numbers")
    if not np.isfinite(found).all():
        raise EngineError("device", "the device's self-test gave numbers that are not finite")


def logits_of(
    graph: BoundGraph, rows: KeyValueRows, embedding: EmbeddingTable, vocabulary: int
) -> Numbers:
    """[LINES, vocabulary]; the last two, of rows that decode together, only where there are two."""
    table = embedding.lookup(trial_ids(_LENGTH, vocabulary))
    first, second = rows.take(_LENGTH), rows.take(SECOND + 1)
    try:
        if first is None:
            raise EngineError("device", "the device has no row for its self-test")
        lines = _alone(graph, first, table)
        if second is not None and second.index == first.index + 1 and graph.most_rows > 1:
            lines += _together(graph, first, second, table)
    finally:
        for row in (first, second):
            if row is not None:
                rows.release(row)
    return np.stack(lines)


def _alone(graph: BoundGraph, row: Row, table: Numbers) -> list[Numbers]:
    lines: list[Numbers] = []
    for count in (PREFILLED, CHUNKED, 1):
        end = row.length + count
        chunk = np.ascontiguousarray(table[None, row.length : end])
        lines.append(np.array(graph.run(row.index, chunk, [end], [count - 1]).logits[0]))
        row.advance(count)
    return lines


def _together(graph: BoundGraph, first: Row, second: Row, table: Numbers) -> list[Numbers]:
    graph.run(second.index, np.ascontiguousarray(table[None, :SECOND]), [SECOND], [])
    second.advance(SECOND)
    both = np.ascontiguousarray(table[[first.length, SECOND]][:, None])
    scores = graph.run(first.index, both, [first.length + 1, SECOND + 1], [0, 1])
    return [np.array(scores.logits[place]) for place in (0, 1)]


def trial_ids(count: int, vocabulary: int) -> list[int]:
    return [(7 * place + 3) % vocabulary for place in range(count)]


def _on_cpu(
    session: ort.InferenceSession, artifact: Artifact, embedding: EmbeddingTable
) -> Numbers:
    assert artifact.onnx is not None
    rows = KeyValueRows(
        key_value_planes(artifact),
        rows=2,
        capacity=_LENGTH,
        dtype=np.dtype(artifact.onnx.key_value_dtype),
        budget_bytes=1 << 40,
        states=artifact.onnx.states,
    )
    graph = BoundGraph(session, artifact, rows, most_rows=2, most_scores=2)
    try:
        return logits_of(graph, rows, embedding, artifact.vocabulary)
    finally:
        graph.close()
        rows.close()


# ---- models that give vectors ----


def check_encoder(
    encoder: OnnxEncoder, reference: Reference, make: Callable[[ort.InferenceSession], OnnxEncoder]
) -> float:
    """How far apart vectors are, at most: 1 - cosine. Raises EngineError("device").

    `make` builds the encoder on another session.
    """
    expected = reference.numbers(lambda session: vectors_of(make(session)), len(TEXT_LENGTHS))
    return compare_vectors(vectors_of(encoder), expected)


def vectors_of(encoder: OnnxEncoder) -> Numbers:
    """[texts, width]."""
    vocabulary = encoder.capabilities.vocabulary
    texts = [tuple(trial_ids(length, vocabulary)) for length in TEXT_LENGTHS]
    return np.stack([np.frombuffer(vector, "<f4") for vector in encoder.embed(texts)])


def compare_vectors(found: Numbers, expected: Numbers) -> float:
    """Scores, which are vectors of one number, are compared as numbers."""
    _check_finite(found, expected)
    if expected.shape[1] == 1:
        apart = float((np.abs(found - expected) / np.maximum(np.abs(expected), 1.0)).max())
    else:
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (found * expected).sum(axis=1) / np.maximum(lengths, 1e-12)
        apart = float(1.0 - cosines.min())
    if not apart < VECTOR_TOLERANCE:
        raise EngineError(
            "device", f"the device's self-test gives vectors that are {apart:.2f} from the CPU's"
        )
    return apart


# ---- what is kept ----


def _kept(path: pathlib.Path) -> Numbers | None:
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept.astype(np.float32) if kept.ndim == 2 else None


def _keep(path: pathlib.Path, numbers: Numbers) -> None:
    """A cache: what cannot be written is made again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.save(file, numbers, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        pathlib.Path(file.name).replace(path)
    except OSError:
        return
