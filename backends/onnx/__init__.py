"""The backend on plain ONNX Runtime. Importing this package imports neither it nor NumPy."""

from __future__ import annotations

from backends.engine.contract import Engine
from backends.types import (
    Load,
)


class OnnxBackend:
    name = "onnx"
    target = "onnx-cpu"

    def load(self, load: Load) -> Engine:
        """An engine on the artifact in `load.artifact`. Raises EngineError."""
        from backends.onnx.loading import load_engine

        return load_engine(load)


backend = OnnxBackend()
