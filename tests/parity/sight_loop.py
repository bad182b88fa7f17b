"""The smallest loop that shows images to a converted model: vectors in, log-probabilities out.

As `OnnxLoop` without the engine: what an image is told stands in the prompt as its vectors, and the
rotation of each position is put where the graph looks for it, which one row can afford.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters.artifact import RopeTable
from tests.parity.onnx_loop import OnnxLoop

Floats = npt.NDArray[np.floating]


class Seen(NamedTuple):
    """Vectors [positions, E · (1 + deepstack)], on a grid where the model rotates by sections."""

    vectors: Floats
    rows: int = 0
    columns: int = 0


Prompt = Sequence[list[int] | Seen]


class SightLoop(OnnxLoop):
    """One loaded artifact and one prompt."""

    def __init__(self, folder: pathlib.Path, prompt: Prompt, context: int = 256) -> None:
        super().__init__(folder, context)
        pieces = [p.vectors if isinstance(p, Seen) else self.embedded(p) for p in prompt]
        self._rows = np.concatenate(pieces).astype(np.float32)
        table = self.artifact.rope["global"]
        angles = angles_of(table, places_of(prompt, has_grid=table.sections is not None))
        self.rope["cos"] = (np.cos(angles) * table.magnitude).astype(np.float32)
        self.rope["sin"] = (np.sin(angles) * table.magnitude).astype(np.float32)

    def seen_logprobs(self) -> npt.NDArray[np.float64]:
        """f64 [vocabulary], for the id after the prompt."""
        found = self.run_vectors(self._rows)
        return found["logits"][0].astype(np.float64) - float(found["lse"][0])


def places_of(prompt: Prompt, *, has_grid: bool) -> npt.NDArray[np.int64]:
    """(time, row, column) of each position, [positions, 3]."""
    found: list[tuple[int, ...]] = []
    start = 0
    for piece in prompt:
        if isinstance(piece, Seen) and has_grid:
            cells = np.ndindex(piece.rows, piece.columns)
            found += [(start, start + row, start + column) for row, column in cells]
            start += max(piece.rows, piece.columns)
        else:
            count = len(piece.vectors) if isinstance(piece, Seen) else len(piece)
            found += [(place,) * 3 for place in range(start, start + count)]
            start += count
    return np.array(found)


def angles_of(table: RopeTable, places: npt.NDArray[np.int64]) -> Floats:
    """[positions, pairs]."""
    pairs = np.arange(len(table.inverse_frequencies))
    part = np.zeros(len(pairs), np.int64)
    if table.sections:
        time, row, column = table.sections
        if table.is_interleaved:
            part[(pairs % 3 == 1) & (pairs < 3 * row)] = 1
            part[(pairs % 3 == 2) & (pairs < 3 * column)] = 2
        else:
            part = np.searchsorted(np.cumsum([time, row]), pairs, side="right")
    return np.multiply(places[:, part], table.inverse_frequencies, dtype=np.float64)
