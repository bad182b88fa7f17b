"""Writes `model.onnx` and `weights.bin` as planned, and reads them back. Decides nothing."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import onnx

from converters.architectures.model import ModelShape
from converters.artifact import GRAPH_FILE, WEIGHTS_FILE, TensorRecord
from converters.targets.onnx.decoder import decoder_model, top_k
from converters.targets.onnx.encoder import encoder_model, vector_size
from converters.targets.onnx.layout import Layout
from converters.targets.onnx.recurrent import row_states
from converters.targets.onnx.weights import WeightsWriter
from converters.tensor_reader import TensorReader

__all__ = ["row_states", "top_k", "vector_size", "verify", "write"]


def write(
    model: ModelShape,
    layout: Layout,
    reader: TensorReader,
    folder: pathlib.Path,
    advance: Callable[[int], None],
) -> list[TensorRecord]:
    """Both files; gives what became of each tensor, once each."""
    build = encoder_model if model.encoder else decoder_model
    graph = build(model, layout)
    (folder / GRAPH_FILE).write_bytes(graph.SerializeToString())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    target = os.open(folder / WEIGHTS_FILE, flags, 0o644)
    try:
        records = WeightsWriter(reader, target, advance).write(layout)
    finally:
        os.close(target)
    return list({record.name: record for record in records}.values())


def verify(layout: Layout, folder: pathlib.Path) -> None:
    """Raises when the graph is not valid ONNX or the weights have another size than planned."""
    weights_bytes = (folder / WEIGHTS_FILE).stat().st_size
    if weights_bytes != layout.weights_bytes:
        raise RuntimeError(f"{WEIGHTS_FILE} has {weights_bytes} bytes")
    onnx.checker.check_model(str(folder / GRAPH_FILE))
