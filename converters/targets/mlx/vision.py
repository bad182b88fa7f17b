"""Vision towers on MLX: what will be written, and writing it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from converters.artifact import TensorRecord
from converters.errors import Unsupported
from converters.gguf import TensorInfo
from converters.projectors.tower import VisionShape
from converters.targets.mlx.layout import Layout
from converters.tensor_reader import TensorReader


def plan_tower(tower: VisionShape, tensors: dict[str, TensorInfo]) -> Layout:
    """Raises Unsupported."""
    raise Unsupported(f"vision towers {tower.form.projector!r} are not converted for MLX yet")


def write_tower(
    tower: VisionShape,
    layout: Layout,
    reader: TensorReader,
    staging: pathlib.Path,
    advance: Callable[[int], None],
) -> list[TensorRecord]:
    """The artifact's files but `vision.json`; gives what became of each tensor."""
    raise Unsupported(f"vision towers {tower.form.projector!r} are not converted for MLX yet")
