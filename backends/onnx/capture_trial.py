"""Whether decode steps gain by being captured as CUDA graphs, tried at every load on a device.

The same ids are decoded as they are and captured: captured steps are kept when they give the same
and take less time. Whatever goes wrong is said in one sentence, and steps go on uncaptured. A trial
that took its process with it is found at the next load, by what it left, and not repeated.
"""

from __future__ import annotations

import logging
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.onnx.binding import BoundGraph
from backends.onnx.device_steps import EAGER_STEPS, DeviceSteps
from backends.onnx.embedding import EmbeddingTable
from backends.onnx.rows import KeyValueRows
from backends.onnx.self_test import PREFILLED, trial_ids
from backends.types import EngineError

# Behind those before a recording and the recording itself; half of them are timed.
STEPS = EAGER_STEPS + 1 + 24
_TIMED = 12
# Launches differ by how many parts a row is cut into, so sums do by their order.
SAME = 0.02
# Less is not worth what recordings take of the device's memory.
LEAST_GAIN = 1.03
# Some kernels copy from the host's memory, and this one is known to keep that for its recordings.
OLDEST_RUNTIME = (1, 31)
# Drivers are updated, and loads are killed for other reasons.
MARKER_SECONDS = 24 * 3600.0
_MARKER = "capture.begun"

logger = logging.getLogger(__name__)


class _Pass(NamedTuple):
    """Of each step the logits; seconds are the median of the last ones."""

    logits: NDArray[np.float32]
    seconds: float


def obstacle_to_capture(folder: pathlib.Path | None, version: str = ort.__version__) -> str:
    """Why it is not to be tried here; empty where it may be. `folder`: where trials leave things."""
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_RUNTIME:
        return f"ONNX Runtime {version} is too old for it"
    try:
        begun = (folder / _MARKER).stat().st_mtime if folder is not None else 0.0
    except OSError:
        return ""
    if time.time() - begun < MARKER_SECONDS:
        return "the last trial of it did not come to an end"
    return ""


def try_capture(
    graph: BoundGraph,
    rows: KeyValueRows,
    embedding: EmbeddingTable,
    vocabulary: int,
    *,
    folder: pathlib.Path | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """Leaves capturing on or off; gives the words that say which, and why.

    Raises EngineError("device") where the device does not work any more after it.
    """
    steps = graph.steps
    if steps is None or not steps.may_capture:
        return ""
    _mark(folder)
    decode = _Decoder(graph, rows, embedding, vocabulary, clock)
    try:
        words = _tried(steps, decode)
    except Exception as error:  # noqa: BLE001  (the runtime raises several unrelated classes)
        first = str(error).strip().partition("\n")[0]
        words = _off(steps, f"trying it failed: {first}")
        _require_alive(decode)
    _unmark(folder)
    logger.info("%s", words)
    return words


def _tried(steps: DeviceSteps, decode: _Decoder) -> str:
    plain = decode.run()
    steps.is_capturing = True
    captured = decode.run()
    if not steps.is_capturing:
        return _off(steps, steps.problem)
    apart = _apart(captured.logits, plain.logits)
    if not apart < SAME:
        return _off(steps, f"the numbers differ by {apart:.0%} of their spread")
    gain = plain.seconds / max(captured.seconds, 1e-9)
    if gain < LEAST_GAIN:
        return _off(steps, f"that is {gain:.2f} times as fast")
    return f"decode steps captured, {gain:.2f} times as fast"


def _off(steps: DeviceSteps, reason: str) -> str:
    steps.is_capturing = False
    steps.forget()
    return not_captured(reason)


def not_captured(reason: str) -> str:
    return f"decode steps not captured ({reason})"


def _apart(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """As a part of the spread; infinite where another id is the likeliest by more than that."""
    if not np.isfinite(found).all():
        return float("inf")
    spread = float(expected.std(axis=1).mean())
    apart = float(np.sqrt(np.square(found - expected).mean())) / max(spread, 1e-6)
    lines = np.arange(len(expected))
    chosen, best = found.argmax(axis=1), expected.argmax(axis=1)
    lost = expected[lines, best] - expected[lines, chosen]
    return float("inf") if (lost > SAME * spread).any() else apart


class _Decoder:
    """Prefills a few ids into a new row and decodes more, always the same."""

    def __init__(
        self,
        graph: BoundGraph,
        rows: KeyValueRows,
        embedding: EmbeddingTable,
        vocabulary: int,
        clock: Callable[[], float],
    ) -> None:
        self._graph = graph
        self._rows = rows
        self._clock = clock
        room = max(PREFILLED + 1, min(PREFILLED + STEPS, rows.capacity))
        self._embeddings = embedding.lookup(trial_ids(room, vocabulary))

    def run(self) -> _Pass:
        row = self._rows.take(len(self._embeddings))
        if row is None:
            raise EngineError("device", "the device has no row for its trial")
        lines: list[NDArray[np.float32]] = []
        seconds: list[float] = []
        try:
            self._graph.run(row.index, self._embeddings[None, :PREFILLED], [PREFILLED], [])
            row.advance(PREFILLED)
            for place in range(PREFILLED, len(self._embeddings)):
                begin = self._clock()
                one = self._embeddings[None, place : place + 1]
                scores = self._graph.run(row.index, one, [place + 1], [0])
                seconds.append(self._clock() - begin)
                row.advance(1)
                lines.append(np.array(scores.logits[0]))
        finally:
            self._rows.release(row)
        return _Pass(np.stack(lines), statistics.median(seconds[-_TIMED:]))


def _require_alive(decode: _Decoder) -> None:
    """Some errors leave a device that computes nothing more in this process."""
    try:
        decode.run()
    except Exception as error:
        raise EngineError("device", f"the GPU failed while capturing was tried: {error}") from error


def _mark(folder: pathlib.Path | None) -> None:
    """A cache: where it cannot be written, a trial that ends the process is tried again."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARKER).touch()
    except OSError:
        return


def _unmark(folder: pathlib.Path | None) -> None:
    if folder is not None:
        (folder / _MARKER).unlink(missing_ok=True)
