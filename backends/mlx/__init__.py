"""The backend on MLX. Importing this package imports neither it nor mlx-lm."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from backends.engine.contract import Engine
from backends.types import Load
from converters.vision_artifact import VisionArtifact

if TYPE_CHECKING:
    from backends.mlx.tower import MlxTower


class MlxBackend:
    name = "mlx"
    target = "mlx"

    def load(self, load: Load) -> Engine:
        """An engine on the artifact in `load.artifact`. Raises EngineError."""
        from backends.mlx.loading import load_engine

        return load_engine(load)

    def load_tower(self, folder: pathlib.Path, artifact: VisionArtifact, load: Load) -> MlxTower:
        """The vision tower of a `VisionArtifact`'s folder. Raises EngineError."""
        from backends.mlx.tower import open_tower

        return open_tower(folder, device=load.device, threads=load.threads)


backend = MlxBackend()
