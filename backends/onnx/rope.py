"""cos/sin tables for the rotary inputs of the graph. Float64 inside, float32 out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converters.artifact import RopeTable


def rotary_tables(
    table: RopeTable, positions: int, context_length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each float32 [positions, len(inverse_frequencies)]."""
    frequencies, magnitude = table.inverse_frequencies, table.magnitude
    if table.is_long(context_length):
        frequencies, magnitude = table.long_inverse_frequencies, table.long_magnitude
    angles = np.outer(np.arange(positions, dtype=np.float64), np.array(frequencies, np.float64))
    return (
        (np.cos(angles) * magnitude).astype(np.float32),
        (np.sin(angles) * magnitude).astype(np.float32),
    )
