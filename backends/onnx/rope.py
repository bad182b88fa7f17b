"""cos/sin tables for the rotary inputs of the graph. Float64 inside, float32 or fp16 out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backends.engine.positions import Layout, section_positions, turning_positions
from backends.types import EngineError
from converters.artifact import Artifact, RopeTable

_TABLE_INPUTS = {"global": ("cos", "sin"), "local": ("cos_local", "sin_local")}


def rotary_tables(
    table: RopeTable, positions: int, context_length: int, layout: Layout = ()
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each float32 [positions, len(inverse_frequencies)].

    With images in `layout`, entry i holds the angles of what stands at place i of the prompt.
    """
    frequencies, magnitude = table.inverse_frequencies, table.magnitude
    if table.is_long(context_length):
        frequencies, magnitude = table.long_inverse_frequencies, table.long_magnitude
    if layout and table.sections is not None:
        places = turning_positions(table, section_positions(layout, 0, positions))
    else:
        places = np.arange(positions)[:, None]
    angles = places.astype(np.float64) * np.array(frequencies, np.float64)
    return (
        (np.cos(angles) * magnitude).astype(np.float32),
        (np.sin(angles) * magnitude).astype(np.float32),
    )


def rotary_inputs(
    artifact: Artifact, positions: int, context_length: int, layout: Layout = ()
) -> dict[str, NDArray[np.floating]]:
    """Name of the graph's input → its table, for as many positions as wanted.

    In the numbers of keys and values, as the attention node asks.
    """
    dtype = np.dtype(artifact.onnx.key_value_dtype if artifact.onnx else "float32")
    inputs: dict[str, NDArray[np.floating]] = {}
    for name, table in artifact.rope.items():
        if name not in _TABLE_INPUTS:
            raise EngineError("load", f"unknown rotary table {name!r} in the artifact")
        tables = rotary_tables(table, positions, context_length, layout)
        inputs.update(zip(_TABLE_INPUTS[name], [one.astype(dtype) for one in tables], strict=True))
    return inputs
