"""The scripted model's vision tower: deterministic numbers of an image's own, for API tests. Not a model.

Each position's vector says the mean of its patches, as often as the vector is long.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from backends.types import EngineError
from converters.vision_artifact import VisionArtifact


class ScriptedTower:
    """`Tower` of backends.vision.plan."""

    def __init__(self, artifact: VisionArtifact) -> None:
        self.artifact = artifact
        self._is_closed = False

    @property
    def row_break(self) -> NDArray[np.float32] | None:
        width = self.artifact.width
        return np.zeros(width, np.float32) if self.artifact.has_row_break else None

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        if self._is_closed:
            raise EngineError("internal", "the vision tower is closed")
        patches = np.asarray(inputs["patches"], np.float32)
        tiles, count, _ = patches.shape
        positions = count // self.artifact.form.merge**2
        width = self.artifact.width * (1 + self.artifact.deepstack)
        means = patches.reshape(tiles, positions, -1).mean(axis=2, keepdims=True)
        return np.repeat(means, width, axis=2)

    def interrupt(self) -> None:
        """Its runs are short."""

    def close(self) -> None:
        self._is_closed = True
