"""Requests that wait for something before an engine may have them: a grammar, images' vectors, or both.

Main thread only; what they wait for is made on threads of `Grammars` and `ImageEncoder`, both started at
the first need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from backends.engine.contract import EngineCapabilities
from backends.engine.grammar import GrammarSpec
from backends.image_span import ImageSpan
from backends.text.image_marks import Place
from backends.text.prompt import ModelText, Prompt
from backends.types import EngineError, GenerateRequest, RequestId
from backends.vision.plan import Tower
from backends.vision.sight import Sight
from backends.vision.vector_cache import ImageVectors
from backends.worker.grammars import GrammarReady, Grammars
from backends.worker.image_encoder import ImageEncoded, ImageEncoder, ImagesReady


class _Waiting(msgspec.Struct):
    request: GenerateRequest
    places: Sequence[Place]
    needs_grammar: bool
    needs_images: bool


class Preparing:
    """`ready` requests come out of the `take` that gives them the last thing they waited for."""

    def __init__(self, post: Callable[[GrammarReady | ImageEncoded | ImagesReady], None]) -> None:
        self._post = post
        self._waiting: dict[RequestId, _Waiting] = {}
        self._grammars: Grammars | None = None
        self._images: ImageEncoder | None = None
        self._is_bidirectional = False

    def open_images(self, sight: Sight, load_tower: Callable[[], Tower]) -> None:
        """Once, before the first request with any. Nothing is loaded yet."""
        self._images = ImageEncoder(sight, load_tower, self._post)
        self._is_bidirectional = sight.artifact.is_bidirectional

    @property
    def takes_images(self) -> bool:
        return self._images is not None

    @property
    def moved(self) -> int:
        """Counts steps of vision towers."""
        return self._images.moved if self._images else 0

    @property
    def cached_bytes(self) -> int:
        return self._images.cached_bytes if self._images else 0

    def add(
        self,
        request: GenerateRequest,
        prompt: Prompt,
        spec: GrammarSpec | None,
        model: ModelText,
        capabilities: EngineCapabilities,
    ) -> None:
        """For a request that needs one or both. Raises EngineError where it cannot be had here."""
        if prompt.images and (self._images is None or capabilities.image_width == 0):
            raise EngineError("unsupported", "this engine takes no images for this model")
        request_id = request.request_id
        if spec is not None:
            self._open_grammars(model, capabilities).compile(request_id, spec)
        self._waiting[request_id] = _Waiting(
            request, prompt.images, spec is not None, bool(prompt.images)
        )
        if self._images is not None and prompt.images:
            self._images.encode(request_id, [place.image for place in prompt.images])

    def _open_grammars(self, model: ModelText, capabilities: EngineCapabilities) -> Grammars:
        if self._grammars is None:
            self._grammars = Grammars(model.tokenizer, model.end_ids, capabilities, self._post)
        return self._grammars

    def positions(self, request_id: RequestId) -> int:
        """Of the prompt; 0 for requests that do not wait."""
        known = self._waiting.get(request_id)
        return len(known.request.prompt_ids) if known else 0

    def remove(self, request_id: RequestId) -> bool:
        """Whether it waited. What still runs for it is of no use."""
        if self._waiting.pop(request_id, None) is None:
            return False
        if self._images is not None:
            self._images.cancel(request_id)
        return True

    def clear(self) -> None:
        for request_id in list(self._waiting):
            self.remove(request_id)

    def take(self, report: GrammarReady | ImagesReady) -> GenerateRequest | EngineError | None:
        """The request that is ready, or why it never will be. None: it waits on, or is gone."""
        known = self._waiting.get(report.request_id)
        if known is None:
            return None
        match report:
            case GrammarReady(grammar=found):
                changes = {"constraint": found}
                known.needs_grammar = False
            case ImagesReady(vectors=found):
                changes = {} if isinstance(found, EngineError) else self._spans(known, found)
                known.needs_images = False
        if isinstance(found, EngineError):
            self.remove(report.request_id)
            return found
        known.request = msgspec.structs.replace(known.request, **changes)
        if known.needs_grammar or known.needs_images:
            return None
        del self._waiting[report.request_id]
        return known.request

    def _spans(
        self, known: _Waiting, vectors: dict[bytes, ImageVectors]
    ) -> dict[str, tuple[ImageSpan, ...]]:
        spans = (
            image_span(place, vectors[place.image.digest], self._is_bidirectional)
            for place in known.places
        )
        return {"images": tuple(spans)}

    def close(self, timeout_seconds: float) -> bool:
        """True when the vision tower was closed in time. 0 only tells it to end."""
        return self._images is None or self._images.close(timeout_seconds)


def image_span(place: Place, vectors: ImageVectors, is_bidirectional: bool) -> ImageSpan:
    part = place.image.plan.vectors[place.part]
    return ImageSpan(
        start=place.start,
        length=part.length,
        embeddings=vectors[place.part],
        rows=part.rows,
        columns=part.columns,
        is_bidirectional=is_bidirectional,
    )
