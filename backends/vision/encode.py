"""One image through a tower: file → picture → patches → vectors, with a word on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from backends.types import EngineError
from backends.vision.decode import decode_image
from backends.vision.plan import Tower
from backends.vision.sight import PlannedImage, Sight
from backends.vision.vector_cache import ImageVectors


def encode_image(
    image: PlannedImage, sight: Sight, tower: Tower, on_step: Callable[[], None]
) -> ImageVectors:
    """`on_step` is called before each run and may raise. Raises EngineError that names the image."""
    form, plan = sight.artifact.form, image.plan
    picture = decode_image(image.data, image.name, (plan.width, plan.height))
    runs: list[NDArray[np.float32]] = []
    for inputs in sight.kind.inputs(form, plan, picture):
        on_step()
        runs.append(tower.run(inputs))
    on_step()
    found = sight.kind.arrange(form, plan, runs, tower.row_break)
    _check(found, image, sight)
    return tuple(np.ascontiguousarray(part, "<f4").tobytes() for part in found)


def _check(found: Sequence[NDArray[np.float32]], image: PlannedImage, sight: Sight) -> None:
    """What a tower gives must be what was promised for the prompt, or nothing."""
    width = sight.artifact.width * (1 + sight.artifact.deepstack)
    wanted = [(part.length, width) for part in image.plan.vectors]
    shapes = [part.shape for part in found]
    if shapes != wanted:
        raise EngineError("internal", f"{image.name}: the tower gave {shapes}, not {wanted}")
    if not all(np.isfinite(part).all() for part in found):
        raise EngineError("internal", f"{image.name}: the tower gave numbers that are not finite")
