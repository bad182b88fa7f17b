"""What one image becomes in a prompt, and what every kind of vision tower must say about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from converters.vision_artifact import ImageForm, VisionArtifact

TowerInputs = dict[str, NDArray[np.generic]]


class MarkupText(msgspec.Struct, frozen=True):
    """Stands in the prompt as it is; what looks like special tokens in it is some."""

    text: str


class Vectors(msgspec.Struct, frozen=True, kw_only=True):
    """`length` positions whose vectors the tower gives, row breaks among them.

    `rows` × `columns` is their grid where the model rotates by sections, else 0.
    """

    length: int
    rows: int = 0
    columns: int = 0


ImagePart = MarkupText | Vectors


class ImagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Made of the image's size alone. `width` × `height`: what it is resized to, in pixels.

    `tiles`: (left, top) of each crop of `ImageForm.image_size`, where there is more than the whole.
    """

    width: int
    height: int
    parts: tuple[ImagePart, ...]
    tiles: tuple[tuple[int, int], ...] = ()

    @property
    def vectors(self) -> tuple[Vectors, ...]:
        return tuple(part for part in self.parts if isinstance(part, Vectors))


class ImageKind(Protocol):
    """One kind of projector. Pure; the source of every rule is cited in its file."""

    def plan(self, form: ImageForm, width: int, height: int) -> ImagePlan:
        """For an image of so many pixels. Raises EngineError("invalid") for what it cannot take."""
        ...

    def inputs(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[TowerInputs]:
        """The tower's runs for one RGB image, each bounded in size: see `converters.vision_artifact`."""
        ...

    def arrange(
        self,
        form: ImageForm,
        plan: ImagePlan,
        embeddings: Sequence[NDArray[np.float32]],
        row_break: NDArray[np.float32] | None,
    ) -> list[NDArray[np.float32]]:
        """What the runs gave, [N, L, W] each, as [length, W] for each of `plan.vectors`."""
        ...


class Tower(Protocol):
    """A loaded vision tower with its projector. One thread at a time."""

    @property
    def artifact(self) -> VisionArtifact: ...

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """`embeddings` [N, L, W]. Raises EngineError."""
        ...

    @property
    def row_break(self) -> NDArray[np.float32] | None:
        """[W], where the artifact `has_row_break`."""
        ...

    def interrupt(self) -> None:
        """From another thread: a run that goes on ends soon, with EngineError("cancelled")."""
        ...

    def close(self) -> None: ...
