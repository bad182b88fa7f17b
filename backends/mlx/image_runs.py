"""What the runs of a request with images are given beside its ids."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from backends.engine.positions import (
    Layout,
    layout_of,
    section_positions,
    skipped_positions,
    turning_positions,
)
from backends.image_span import ImageSpan
from backends.mlx import mlx_lm_internals as internals
from backends.mlx.mlx_lm_images import Angles, ImageInputs, RunImages
from backends.mlx.mlx_lm_internals import Config
from backends.mlx.seat import Seat
from backends.types import EngineError, GenerateRequest
from converters.artifact import Artifact, RopeTable


class ImageRuns:
    """Of one loaded model, whose modules are changed when the first images come."""

    def __init__(self, model: nn.Module, config: Config, artifact: Artifact) -> None:
        self._model: nn.Module | None = model
        self._config = config
        self._width = artifact.embedding_length
        tables = artifact.rope.values()
        self._table = next((table for table in tables if table.sections), None)
        self._inputs: ImageInputs | None = None

    def admit(self, request: GenerateRequest) -> None:
        """Raises EngineError("unsupported") for images that this model cannot be given."""
        if not request.images:
            return
        if not isinstance(self._model, nn.Module):
            raise EngineError("unsupported", "a model over several ranks takes no images yet")
        if self._inputs is None:
            is_sectioned = self._table is not None
            self._inputs = ImageInputs(self._model, self._config, is_sectioned=is_sectioned)
        if any(span.is_bidirectional for span in request.images):
            kinds = internals.kinds_of(internals.make_caches(self._model))
            if not self._inputs.can_open_masks(kinds):
                raise EngineError("unsupported", "this model cannot see images as a whole on MLX")

    def feeding(self, seats: Sequence[Seat], count: int) -> contextlib.AbstractContextManager[None]:
        """While a run of the next `count` ids of each seat is built; images need one of their own."""
        if self._inputs is None:
            return contextlib.nullcontext()
        layouts = [layout_of(seat.images) if self._table else () for seat in seats]
        shifts = [
            -skipped_positions(_behind(layout, seat.length))
            for layout, seat in zip(layouts, seats, strict=True)
        ]
        images = angles = None
        if len(seats) == 1:
            start = seats[0].length
            images = run_images(seats[0].images, start, count, self._width)
            if images and self._table and layouts[0]:
                angles = run_angles(self._table, layouts[0], start, count)
        return self._inputs.giving(images, angles, shifts)

    def close(self) -> None:
        self._model = self._inputs = None


def run_images(images: Sequence[ImageSpan], start: int, count: int, width: int) -> RunImages | None:
    """Of the ids from `start` on; None where no image lies there."""
    met = [span for span in images if span.start < start + count and start < _end(span)]
    if not met:
        return None
    blocks = _vectors_of(met[0]).shape[1] // width
    vectors = np.zeros((blocks, count, width), np.float32)
    is_image: Any = np.zeros((count, 1), np.bool_)
    spans: list[tuple[int, int]] = []
    for span in met:
        begin, end = max(span.start, start), min(_end(span), start + count)
        rows = _vectors_of(span)[begin - span.start : end - span.start]
        own = rows.reshape(len(rows), blocks, width).swapaxes(0, 1)
        vectors[:, begin - start : end - start] = own
        is_image[begin - start : end - start] = True
        if span.is_bidirectional:
            spans.append((begin - start, end - start))
    first, *added = (mx.array(each) for each in vectors)
    return RunImages(first, mx.array(is_image), tuple(added), tuple(spans))


def run_angles(table: RopeTable, layout: Layout, start: int, count: int) -> Angles:
    """Of the ids from `start` on."""
    positions = turning_positions(table, section_positions(layout, start, start + count))
    turns = positions * np.array(table.inverse_frequencies)
    cos, sin = np.cos(turns) * table.magnitude, np.sin(turns) * table.magnitude
    return Angles(mx.array(cos.astype(np.float32)), mx.array(sin.astype(np.float32)))


def fed_ids(ids: Sequence[int]) -> Any:
    """[1, S]; whatever the embedding of an image's position may be, it is not used."""
    return mx.array([[max(token_id, 0) for token_id in ids]])


def _behind(layout: Layout, place: int) -> Layout:
    """The images that end before `place`."""
    return tuple(each for each in layout if each[0] + each[1] * each[2] <= place)


def _end(span: ImageSpan) -> int:
    return span.start + span.length


def _vectors_of(span: ImageSpan) -> NDArray[np.float32]:
    """[length, blocks · width]."""
    return np.frombuffer(span.embeddings, "<f4").reshape(span.length, -1)
