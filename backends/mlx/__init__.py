"""The backend on MLX. Importing this package imports neither it nor mlx-lm."""

from __future__ import annotations

from backends.engine.contract import Engine
from backends.types import Load


class MlxBackend:
    name = "mlx"
    target = "mlx"

    def load(self, load: Load) -> Engine:
        """An engine on the artifact in `load.artifact`. Raises EngineError."""
        from backends.mlx.loading import load_engine

        return load_engine(load)


backend = MlxBackend()
