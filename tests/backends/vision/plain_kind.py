"""A kind of tower for tests: `[` one position for each patch of 4 × 4 pixels `]`, and its artifact.

A position's vector is the mean colour of its patch.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backends.types import EngineError
from backends.vision.plan import ImagePlan, MarkupText, TowerInputs, Vectors
from backends.vision.sight import Sight
from converters.artifact import ARTIFACT_FORMAT
from converters.vision_artifact import VISION_FILE, ImageForm, VisionArtifact

PATCH = 4
FORM = ImageForm(projector="plain", patch_size=PATCH)


class PlainKind:
    def plan(self, form: ImageForm, width: int, height: int) -> ImagePlan:
        columns, rows = width // PATCH, height // PATCH
        if not columns or not rows:
            raise EngineError("invalid", "it is too small")
        vectors = Vectors(length=rows * columns, rows=rows, columns=columns)
        return ImagePlan(
            width=columns * PATCH,
            height=rows * PATCH,
            parts=(MarkupText("["), vectors, MarkupText("]")),
        )

    def inputs(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[TowerInputs]:
        """One run for each row of patches."""
        pixels = np.asarray(image.resize((plan.width, plan.height)), np.float32) / 255
        for top in range(0, plan.height, PATCH):
            row = pixels[top : top + PATCH].reshape(PATCH, -1, PATCH, 3)
            yield {"patches": row.transpose(1, 3, 0, 2).reshape(1, -1, 3 * PATCH * PATCH)}

    def arrange(
        self,
        form: ImageForm,
        plan: ImagePlan,
        embeddings: Sequence[NDArray[np.float32]],
        row_break: NDArray[np.float32] | None,
    ) -> list[NDArray[np.float32]]:
        return [np.concatenate([run[0] for run in embeddings])]


def vision_artifact(width: int, **options: object) -> VisionArtifact:
    fields: dict[str, Any] = {
        "format": ARTIFACT_FORMAT,
        "converter": 1,
        "source": "1" * 64,
        "variant": "vision-plain",
        "form": FORM,
    }
    return VisionArtifact(**{**fields, "width": width, **options})


def write_vision(folder: pathlib.Path, artifact: VisionArtifact) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VISION_FILE).write_bytes(msgspec.json.encode(artifact))
    return folder


def plain_sight(width: int = 4, **options: object) -> Sight:
    return Sight(vision_artifact(width, **options), PlainKind())
