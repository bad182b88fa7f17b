"""`gemma3`: the whole image made square, whatever its shape.

Source: Hugging Face's `Gemma3ImageProcessor` without pan and scan, which is off unless asked for; the
markup is llama.cpp's. Where an image is not square, newer versions of llama.cpp pad it instead, and
its bilinear filter looks at four pixels only.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from backends.vision.patches import positions_of_tile
from backends.vision.plan import ImagePlan, MarkupText, Vectors
from backends.vision.tiled import TiledKind
from converters.vision_artifact import ImageForm


class Gemma3(TiledKind):
    def plan(self, form: ImageForm, width: int, height: int) -> ImagePlan:
        parts = (
            MarkupText("<start_of_image>"),
            Vectors(length=positions_of_tile(form)),
            MarkupText("<end_of_image>"),
        )
        return ImagePlan(width=form.image_size, height=form.image_size, parts=parts)

    def views(self, form: ImageForm, plan: ImagePlan, image: Image.Image) -> Iterator[Image.Image]:
        yield image.resize((plan.width, plan.height), Image.Resampling.BILINEAR)
