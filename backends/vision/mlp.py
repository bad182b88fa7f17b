"""`mlp`: LLaVA 1.5, the image padded to a square with the mean colour.

Source: LLaVA's own `expand2square`, bicubic; no text around. llama.cpp does the same with a filter that
looks at 16 pixels only, so that images much larger than a tile look different to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from backends.vision.patches import positions_of_tile
from backends.vision.plan import ImagePlan, Vectors
from backends.vision.tiled import TiledKind
from converters.vision_artifact import ImageForm


class Mlp(TiledKind):
    def plan(self, form: ImageForm, width: int, height: int) -> ImagePlan:
        vectors = Vectors(length=positions_of_tile(form))
        return ImagePlan(width=form.image_size, height=form.image_size, parts=(vectors,))

    def views(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[Image.Image]:
        square = _squared(image, tuple(int(255 * number) for number in form.mean))
        yield square.resize((plan.width, plan.height), Image.Resampling.BICUBIC)


def _squared(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """In the middle of a square as long as the longer side."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
