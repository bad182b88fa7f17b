"""The backend on plain ONNX Runtime. Importing this package imports neither it nor NumPy."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from backends.engine.contract import Engine
from backends.types import (
    Load,
)
from converters.vision_artifact import VisionArtifact

if TYPE_CHECKING:
    from backends.onnx.tower import OnnxTower

# ONNX Runtime reports what it runs to its maker, unless told before it is imported; this package is
# always imported before it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


class OnnxBackend:
    name = "onnx"
    target = "onnx-cpu"

    def load(self, load: Load) -> Engine:
        """An engine on the artifact in `load.artifact`. Raises EngineError."""
        from backends.onnx.loading import load_engine

        return load_engine(load)

    def load_tower(self, folder: pathlib.Path, artifact: VisionArtifact, load: Load) -> OnnxTower:
        """The vision tower of a `VisionArtifact`'s folder. Raises EngineError."""
        from backends.onnx.tower import open_tower

        return open_tower(folder, device=load.device, threads=load.threads)


backend = OnnxBackend()
