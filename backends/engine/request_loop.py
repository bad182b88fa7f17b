"""What every engine does with its requests, whatever the runtime: who waits, whose turn it is, who leaves.

Requests wait, take a seat, are prefilled, decode, and close with one event. While some decode and
others prefill, the two alternate. What a seat holds is the runtime's own.
"""

from __future__ import annotations

import abc
from collections import deque
from typing import Generic, Protocol, TypeVar

from backends.engine.applicant import Applicant, Fed, plan_prefill
from backends.engine.contract import EngineCapabilities
from backends.engine.generation import Generation, plan_limits
from backends.engine.images import text_ids
from backends.engine.sampling import Sampler
from backends.types import EngineError, Failed, GenerateRequest, RequestId, TokenEvent


class Seated(Fed, Protocol):
    """A request that has been admitted."""

    generation: Generation


_Seat = TypeVar("_Seat", bound=Seated)


class RequestLoop(abc.ABC, Generic[_Seat]):
    """The part of `Engine` that is the same for all. Called from one thread only."""

    def __init__(self, capabilities: EngineCapabilities) -> None:
        self.capabilities = capabilities
        self._waiting: deque[Applicant] = deque()
        self._prefilling: list[_Seat] = []
        self._closing: list[TokenEvent] = []
        self._decode_is_next = False
        self._steps = 0

    @abc.abstractmethod
    def _require_loaded(self) -> None:
        """Raises EngineError where nothing can be run any more."""

    @abc.abstractmethod
    def _decoding_seats(self) -> list[_Seat]: ...

    @abc.abstractmethod
    def _leave(self, seat: _Seat, *, has_failed: bool = False) -> None:
        """Frees the seat; what it holds is kept for others, unless a run went wrong in it."""

    @abc.abstractmethod
    def _admit(self) -> None:
        """Seats the longest waiting requests, while there is room."""

    @abc.abstractmethod
    def _prefill(self, seat: _Seat) -> list[TokenEvent]: ...

    @abc.abstractmethod
    def _decode(self) -> list[TokenEvent]:
        """One run, or more, over all that decode; [] where none does."""

    def _seats(self) -> list[_Seat]:
        return [*self._decoding_seats(), *self._prefilling]

    def add(self, request: GenerateRequest) -> None:
        request_id = request.request_id
        try:
            self._require_loaded()
            if self._drop(request_id) is not None:
                raise EngineError("invalid", "this request id is in use")
            self._waiting.append(self._accepted(request))
        except EngineError as error:
            self._closing.append(Failed(request_id=request_id, code=error.code, message=str(error)))

    def _accepted(self, request: GenerateRequest) -> Applicant:
        capabilities = self.capabilities
        context, max_tokens = plan_limits(
            request,
            capabilities.context_length,
            capabilities.vocabulary,
            capabilities.image_width,
        )
        self._check_images(request)
        sampler = Sampler(
            request.sampling,
            newline_ids=request.newline_ids,
            history=text_ids(request.prompt_ids),
            constraint=request.constraint,
        )
        return Applicant(
            Generation(request, context=context, max_tokens=max_tokens),
            sampler,
            has_reproducible_batches=capabilities.reproducible_batches,
        )

    def _check_images(self, request: GenerateRequest) -> None:
        """Raises EngineError for images that hold together but that this model cannot take."""

    def has_work(self) -> bool:
        return bool(self._closing or self._waiting or self._seats())

    def step(self) -> list[TokenEvent]:
        if self._closing:
            events, self._closing = self._closing, []
            return events
        if not self.has_work():
            return []
        self._steps += 1
        self._admit()
        if not self._prefilling or (self._decode_is_next and self._decoding_seats()):
            self._decode_is_next = False
            return self._decode()
        self._decode_is_next = True
        return self._prefill(plan_prefill(self._prefilling, self._steps // 2))

    def cancel(self, request_id: RequestId) -> None:
        generation = self._drop(request_id)
        if generation is not None:
            self._closing.append(generation.close("cancelled"))

    def cancel_all(self) -> None:
        for request_id in [each.generation.id for each in (*self._waiting, *self._seats())]:
            self.cancel(request_id)

    def _drop(self, request_id: RequestId) -> Generation | None:
        """Forgets a request wherever it is and frees its seat."""
        for applicant in self._waiting:
            if applicant.generation.id == request_id:
                self._waiting.remove(applicant)
                return applicant.generation
        for seat in self._seats():
            if seat.generation.id == request_id:
                self._leave(seat)
                return seat.generation
        return None
