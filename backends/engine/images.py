"""What must hold of a request's images before an engine takes it, at the level of ids."""

from __future__ import annotations

from collections.abc import Sequence

from backends.image_span import ImageSpan
from backends.types import EngineError, GenerateRequest

# `EngineCapabilities.image_width` of an engine that takes vectors of any.
ANY_WIDTH = -1


def check_images(request: GenerateRequest, width: int) -> None:
    """Spans rise, are apart and inside the prompt; ids below 0 are just there; vectors have `width`.

    `width` 0: the model takes none. Raises EngineError("invalid" or "unsupported").
    """
    if not request.images:
        return
    if width == 0:
        raise EngineError("unsupported", "this model takes no images")
    end = 0
    for span in request.images:
        if not end <= span.start < span.start + span.length <= len(request.prompt_ids):
            raise EngineError("invalid", "the images do not lie one behind the other in the prompt")
        _check_span(span, width)
        end = span.start + span.length
        if max(request.prompt_ids[span.start : end]) >= 0:
            raise EngineError("invalid", "there are ids of text where an image is said to lie")


def _check_span(span: ImageSpan, width: int) -> None:
    numbers, rest = divmod(len(span.embeddings), 4 * span.length)
    if rest or numbers < 1 or (width != ANY_WIDTH and numbers != width):
        raise EngineError(
            "invalid",
            f"an image of {span.length} positions came with {len(span.embeddings)} bytes, "
            f"which are no vectors of {width if width > 0 else 'any'} numbers",
        )
    if min(span.rows, span.columns) < 0 or (
        (span.rows or span.columns) and span.rows * span.columns != span.length
    ):
        raise EngineError(
            "invalid",
            f"an image of {span.length} positions is said to have {span.rows} × {span.columns}",
        )


def image_positions(images: Sequence[ImageSpan]) -> int:
    """How many positions of the prompt are images'."""
    return sum(span.length for span in images)


def text_ids(ids: Sequence[int]) -> Sequence[int]:
    """The ids that are text: no sampler, penalty or grammar knows others."""
    return [token_id for token_id in ids if token_id >= 0] if min(ids, default=0) < 0 else ids
