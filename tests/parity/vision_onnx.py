"""Images through our own converter on ONNX Runtime, by plain loops: no engine, no worker."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from backends.onnx.tower import OnnxTower, open_tower
from backends.vision.kinds import kind_of
from backends.vision.plan import ImagePlan, Vectors
from converters.convert_vision import VisionRequest, convert_vision
from tests.parity.converted import SilentProgress

Floats = npt.NDArray[np.float32]


def converted_tower(path: pathlib.Path, target: str = "onnx-cpu") -> pathlib.Path:
    """The vision artifact's folder, beside the projector file."""
    final = path.with_name(f"{path.stem}-vision-{target}")
    request = VisionRequest(source="e1" * 32, target=target, final=final)
    with path.open("rb") as file:
        convert_vision(file, request, SilentProgress())
    return final


class Eyes:
    """A tower with its kind's preprocessing."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.tower: OnnxTower = open_tower(folder, threads=1)
        self.form = self.tower.artifact.form
        self.kind = kind_of(self.form.projector)

    def plan(self, image: Image.Image) -> ImagePlan:
        return self.kind.plan(self.form, *image.size)

    def vectors(self, image: Image.Image) -> list[Floats]:
        """One array for each of the plan's `Vectors`."""
        plan = self.plan(image)
        runs = [self.tower.run(inputs) for inputs in self.kind.inputs(self.form, plan, image)]
        return self.kind.arrange(self.form, plan, runs, self.tower.row_break)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def pieces_of(eyes: Eyes, prompt: Sequence[str | bytes]) -> list[str | Floats]:
    """Texts and vectors in the order of the prompt, the kind's markup among them."""
    found: list[str | Floats] = []
    for piece in prompt:
        if isinstance(piece, str):
            found.append(piece)
            continue
        image = opened(piece)
        vectors = iter(eyes.vectors(image))
        found += [
            next(vectors) if isinstance(part, Vectors) else part.text
            for part in eyes.plan(image).parts
        ]
    return found
